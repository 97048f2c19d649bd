//! Whose bytes a chunk's bytes are, when realloc has grown it.
//!
//! A chunk's first bytes belong to the stack that allocated it, each growth to the stack of its
//! realloc. The parts live in a map of their own because few chunks have any.

use crate::abi::{MAX_PARTS, Part, Parts};
use crate::lookup::opaque;

/// Books growth of `requested` and `held` bytes to `stack`.
///
/// The same stack growing the same chunk again (a buffer that doubles) adds to its part. Returns
/// the stack that the bytes were booked to: another one if the chunk has [`MAX_PARTS`] parts of
/// other stacks, since the growth then goes to the newest of them.
#[inline(always)]
pub fn grow(parts: &mut Parts, stack: u32, requested: u64, held: u64, born_ns: u64) -> u32 {
    let count = parts.count;
    let mut index = 0;
    // MAX_PARTS is 8: small enough to be unrolled.
    while index < MAX_PARTS as u32 {
        if index >= count {
            break;
        }
        let part = &mut parts.parts[(opaque(index as u64) & (MAX_PARTS as u64 - 1)) as usize];
        if part.stack == stack {
            part.requested += requested;
            part.held += held;
            part.born_ns = born_ns;
            return stack;
        }
        index += 1;
    }
    if count < MAX_PARTS as u32 {
        parts.parts[(opaque(count as u64) & (MAX_PARTS as u64 - 1)) as usize] =
            Part { requested, held, born_ns, stack, pad: 0 };
        parts.count = count + 1;
        return stack;
    }
    let last = &mut parts.parts[MAX_PARTS - 1];
    last.requested += requested;
    last.held += held;
    last.stack
}

/// Takes bytes, requested and held, off again, newest part first, and tells `gone` what each
/// stack lost; returns what is left to take off the bytes of the allocation itself.
#[inline(always)]
pub fn shrink(parts: &mut Parts, mut loss: (u64, u64), mut gone: impl FnMut(u32, (u64, u64))) -> (u64, u64) {
    let mut index = MAX_PARTS;
    while index > 0 {
        index -= 1;
        // Unused parts hold zero bytes, so there is no need to look at the count.
        // LLVM would count an offset down from zero, and Linux 7.2 refuses a pointer with a negative
        // one ("unbounded memory access"), wherever it leads in the end.
        let part = &mut parts.parts[(opaque(index as u64) & (MAX_PARTS as u64 - 1)) as usize];
        let less = (part.requested.min(loss.0), part.held.min(loss.1));
        if less.0 | less.1 != 0 {
            gone(part.stack, less);
            part.requested -= less.0;
            part.held -= less.1;
            loss = (loss.0 - less.0, loss.1 - less.1);
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Parts = Parts::EMPTY;

    #[test]
    fn a_buffer_that_doubles_from_one_place_stays_one_part() {
        let mut parts = EMPTY;
        assert_eq!(grow(&mut parts, 7, 1024, 1024, 1), 7);
        assert_eq!(grow(&mut parts, 7, 2048, 2048, 2), 7);
        assert_eq!(parts.count, 1);
        assert_eq!((parts.parts[0].requested, parts.parts[0].held, parts.parts[0].born_ns), (3072, 3072, 2));
    }

    #[test]
    fn shrinking_takes_from_the_newest_growth_first() {
        let mut parts = EMPTY;
        grow(&mut parts, 1, 100, 128, 1);
        grow(&mut parts, 2, 50, 64, 2);
        let mut lost = [(0, 0); 3];
        assert_eq!(shrink(&mut parts, (60, 64), |stack, bytes| lost[stack as usize] = bytes), (0, 0));
        assert_eq!(lost, [(0, 0), (10, 0), (50, 64)]);
        assert_eq!((parts.parts[1].requested, parts.parts[1].held), (0, 0));
        assert_eq!((parts.parts[0].requested, parts.parts[0].held), (90, 128));
        assert_eq!(shrink(&mut parts, (100, 200), |_, _| {}), (10, 72));
    }

    #[test]
    fn a_ninth_stack_adds_to_the_eighth_and_no_byte_is_lost() {
        let mut parts = EMPTY;
        for stack in 0..8 {
            assert_eq!(grow(&mut parts, stack, 10, 16, 1), stack);
        }
        assert_eq!(grow(&mut parts, 99, 10, 16, 1), 7);
        assert_eq!(parts.parts.iter().map(|part| part.requested).sum::<u64>(), 90);
        assert_eq!(parts.parts.iter().map(|part| part.held).sum::<u64>(), 144);
    }
}
