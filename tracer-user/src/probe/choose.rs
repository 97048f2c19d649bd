//! Where to put a probe: the first instruction that the kernel emulates, if it sees every call
//! as the entry does.
//!
//! A probed instruction is either emulated by the kernel or single-stepped out of line, which
//! costs ten times as much in a virtual machine. What is emulated on x86 stands in
//! `push_setup_xol_ops` and `branch_setup_xol_ops` of `arch/x86/kernel/uprobes.c`, unchanged
//! from Linux 6.1 to 6.18; newer kernels add multi-byte nops, which are not relied on.

use iced_x86::{Code, FastFormatter, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};

use super::{
    CostClass,
    code::{Code64, branch_target, is_indirect_jump},
};
use crate::addr::VirtAddr;

/// A cookie has eight bits for the distance of a probe from its function's entry.
const MAX_SKEW: u64 = u8::MAX as u64;

/// Why a function is probed at its first instruction, although that is not a cheap one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WhyEntry {
    #[error("its code ends, or cannot be decoded, before any instruction that the kernel emulates")]
    CodeEnds,
    #[error(
        "{register:?} is overwritten at +{at} ({instruction}), before any instruction that the kernel emulates"
    )]
    Overwritten { register: Register, at: u64, instruction: String },
    #[error("the return address is overwritten at +{at} ({instruction})")]
    ReturnAddress { at: u64, instruction: String },
    #[error("control leaves at +{at} ({instruction}), before any instruction that the kernel emulates")]
    Leaves { at: u64, instruction: String },
    #[error("a jump at {from} lands at +{to}, so the probe at +{at} would not be hit once a call")]
    JumpsIn { from: VirtAddr, to: u64, at: u64 },
    #[error("an indirect jump at {from} may land before the probe at +{at}")]
    MayJumpIn { from: VirtAddr, at: u64 },
    #[error("no instruction that the kernel emulates in its first {MAX_SKEW} bytes")]
    TooFar,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Bytes from the entry.
    pub(super) skew: u64,
    pub(super) cost: CostClass,
    pub(super) instruction: String,
    pub(super) why_entry: Option<WhyEntry>,
}

/// Chooses the instruction to probe in a function whose range is `code`, and which reads
/// `arguments` there; `elsewhere` is the code outside of the range that it jumps to. `None` if
/// its first bytes are no instruction.
pub(super) fn choose(code: Code64<'_>, arguments: &[Register], elsewhere: &[Code64<'_>]) -> Option<Choice> {
    let entry = code.instructions().next()?;
    Some(match first_emulated(code, arguments).and_then(|chosen| hit_once(code, elsewhere, chosen)) {
        Ok(chosen) => Choice {
            skew: chosen.ip().wrapping_sub(code.start.0),
            cost: CostClass::Emulated,
            instruction: text(&chosen),
            why_entry: None,
        },
        Err(why) => Choice {
            skew: 0,
            cost: CostClass::SingleStepped,
            instruction: text(&entry),
            why_entry: Some(why),
        },
    })
}

/// The first instruction that the kernel emulates, reached in a straight line with the
/// arguments, rsp and the return address as at the entry.
fn first_emulated(code: Code64<'_>, arguments: &[Register]) -> Result<Instruction, WhyEntry> {
    let mut factory = InstructionInfoFactory::new();
    for instruction in code.instructions() {
        let at = instruction.ip().wrapping_sub(code.start.0);
        if at > MAX_SKEW {
            return Err(WhyEntry::TooFar);
        }
        if is_emulated(code.bytes_of(&instruction)) {
            return Ok(instruction);
        }
        if instruction.flow_control() != FlowControl::Next {
            return Err(WhyEntry::Leaves { at, instruction: text(&instruction) });
        }
        let info = factory.info(&instruction);
        let overwritten = info
            .used_registers()
            .iter()
            .filter(|used| writes(used.access()))
            .map(|used| used.register().full_register())
            .find(|register| *register == Register::RSP || arguments.contains(register));
        if let Some(register) = overwritten {
            return Err(WhyEntry::Overwritten { register, at, instruction: text(&instruction) });
        }
        // Below rsp is the function's red zone; at rsp is the return address.
        let return_address = info.used_memory().iter().any(|used| {
            writes(used.access())
                && used.base().full_register() == Register::RSP
                && (used.index() != Register::None
                    || used.displacement().cast_signed().saturating_add(used.memory_size().size() as i64) > 0)
        });
        if return_address {
            return Err(WhyEntry::ReturnAddress { at, instruction: text(&instruction) });
        }
    }
    Err(WhyEntry::CodeEnds)
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Exactly the encodings that the kernel emulates in every version since 6.1. Written down as
/// bytes because the kernel looks at bytes too: with another prefix (`66`, `48`, `f2`) the same
/// instruction may be single-stepped or refused.
fn is_emulated(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        // push of a register
        [0x50..=0x57] | [0x41, 0x50..=0x57]
        // nop
        | [0x90]
        // jmp, jcc
        | [0xeb | 0x70..=0x7f, _] | [0xe9, _, _, _, _] | [0x0f, 0x80..=0x8f, _, _, _, _]
        // call; nothing was pushed before it, or a push would have been chosen
        | [0xe8, _, _, _, _]
    )
}

/// Refuses an instruction that is not passed exactly once a call: some jump lands behind the
/// entry and not behind the instruction.
fn hit_once(
    code: Code64<'_>,
    elsewhere: &[Code64<'_>],
    chosen: Instruction,
) -> Result<Instruction, WhyEntry> {
    let at = chosen.ip().wrapping_sub(code.start.0);
    if at == 0 {
        return Ok(chosen);
    }
    let all = code.instructions().chain(elsewhere.iter().flat_map(|part| part.instructions()));
    for instruction in all {
        if let Some(to) = branch_target(&instruction).map(|target| target.0.wrapping_sub(code.start.0))
            && (1..=at).contains(&to)
        {
            return Err(WhyEntry::JumpsIn { from: VirtAddr(instruction.ip()), to, at });
        }
    }
    // The targets of a jump table are not read. A compiler does not jump at or before a push of
    // the prologue, where the stack would have to be what it is at the entry.
    let is_push = matches!(chosen.code(), Code::Push_r64);
    match code.instructions().find(is_indirect_jump) {
        Some(jump) if !is_push => Err(WhyEntry::MayJumpIn { from: VirtAddr(jump.ip()), at }),
        _ => Ok(chosen),
    }
}

/// An instruction as text, `push rbp`.
fn text(instruction: &Instruction) -> String {
    let mut formatter = FastFormatter::new();
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(true);
    options.set_use_hex_prefix(true);
    options.set_uppercase_hex(false);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1000;

    fn code(bytes: &[u8]) -> Code64<'_> {
        Code64 { start: VirtAddr(ENTRY), bytes }
    }

    /// The choice in a function that reads its first two arguments.
    fn chosen(bytes: &[u8]) -> Choice {
        choose(code(bytes), &[Register::RDI, Register::RSI], &[]).expect("an instruction")
    }

    fn cheap(bytes: &[u8]) -> (u64, String) {
        let choice = chosen(bytes);
        assert_eq!((choice.cost, choice.why_entry), (CostClass::Emulated, None));
        (choice.skew, choice.instruction)
    }

    fn why_entry(bytes: &[u8]) -> WhyEntry {
        let choice = chosen(bytes);
        assert_eq!((choice.skew, choice.cost), (0, CostClass::SingleStepped));
        choice.why_entry.expect("a reason")
    }

    #[test]
    fn a_push_at_the_entry() {
        // push %rbp; mov %rsp,%rbp; ret
        assert_eq!(cheap(&[0x55, 0x48, 0x89, 0xe5, 0xc3]), (0, "push rbp".into()));
        // push %r13; ret
        assert_eq!(cheap(&[0x41, 0x55, 0xc3]), (0, "push r13".into()));
    }

    #[test]
    fn the_jump_behind_a_comparison_as_in_17() {
        // mov 0x40(%rdi),%eax; nothing but a load … cmp %rsi,%rax; jae +5; push; ret
        let bytes =
            [0x8b, 0x87, 0x40, 0, 0, 0, 0x48, 0x39, 0xf0, 0x73, 5, 0x55, 0x5d, 0xc3, 0x90, 0x90, 0xc3];
        assert_eq!(cheap(&bytes), (9, "jae 0x1010".into()));
        // The long form of jb.
        let bytes = [0x48, 0x39, 0xf0, 0x0f, 0x82, 1, 0, 0, 0, 0xc3, 0xc3];
        assert_eq!(cheap(&bytes), (3, "jb 0x100a".into()));
    }

    #[test]
    fn a_push_behind_endbr64() {
        assert_eq!(cheap(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3]), (4, "push rbp".into()));
    }

    #[test]
    fn nop_tail_jump_and_call_are_emulated() {
        assert_eq!(cheap(&[0x90, 0xc3]).0, 0);
        // mov $0,%edx; jmp far away
        assert_eq!(cheap(&[0xba, 0, 0, 0, 0, 0xe9, 0, 1, 0, 0]), (5, "jmp 0x110a".into()));
        // call __fentry__ behind endbr64
        assert_eq!(cheap(&[0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0, 1, 0, 0, 0xc3]), (4, "call 0x1109".into()));
    }

    #[test]
    fn look_alikes_of_emulated_instructions_are_passed_over() {
        // endbr64; 5-byte nop; push %rbp
        let bytes = [0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0, 0, 0x55, 0x5d, 0xc3];
        assert_eq!(cheap(&bytes), (9, "push rbp".into()));
        // 2-byte nop, pause, xchg %r8,%rax: all of them 0x90 behind a prefix. Then a push.
        let bytes = [0x66, 0x90, 0xf3, 0x90, 0x41, 0x90, 0x53, 0xc3];
        assert_eq!(cheap(&bytes), (6, "push rbx".into()));
        // push $1 moves rsp and is not emulated.
        assert!(matches!(
            why_entry(&[0x6a, 1, 0x55, 0xc3]),
            WhyEntry::Overwritten { register: Register::RSP, at: 0, .. }
        ));
        // jrcxz is a conditional jump that the kernel does not know.
        assert!(matches!(why_entry(&[0xe3, 0, 0x55, 0xc3]), WhyEntry::Leaves { at: 0, .. }));
    }

    #[test]
    fn an_argument_that_is_overwritten_first() {
        // xor %eax,%eax; mov %rsi,%rdi; push %rbp
        assert!(matches!(
            why_entry(&[0x31, 0xc0, 0x48, 0x89, 0xf7, 0x55, 0xc3]),
            WhyEntry::Overwritten { register: Register::RDI, at: 2, .. }
        ));
        // A part of it: mov $1,%sil
        assert!(matches!(
            why_entry(&[0x40, 0xb6, 1, 0x55, 0xc3]),
            WhyEntry::Overwritten { register: Register::RSI, at: 0, .. }
        ));
        // An argument that nobody reads may go: xor %edx,%edx; push %rbp
        assert_eq!(cheap(&[0x31, 0xd2, 0x55, 0xc3]).0, 2);
        // sub $0x18,%rsp; push
        assert!(matches!(
            why_entry(&[0x48, 0x83, 0xec, 0x18, 0x55, 0xc3]),
            WhyEntry::Overwritten { register: Register::RSP, at: 0, .. }
        ));
    }

    #[test]
    fn a_return_address_that_is_overwritten_first() {
        // mov %rax,(%rsp); push
        assert!(matches!(
            why_entry(&[0x48, 0x89, 0x04, 0x24, 0x55, 0xc3]),
            WhyEntry::ReturnAddress { at: 0, .. }
        ));
        // mov %rbx,-8(%rsp), into the red zone; push
        assert_eq!(cheap(&[0x48, 0x89, 0x5c, 0x24, 0xf8, 0x55, 0xc3]).0, 5);
    }

    #[test]
    fn a_function_that_ends_before() {
        // xor %eax,%eax; ret; push
        assert!(matches!(why_entry(&[0x31, 0xc0, 0xc3, 0x55]), WhyEntry::Leaves { at: 2, .. }));
        // mov (%rdi),%rax; jmp *%rax
        assert!(matches!(why_entry(&[0x48, 0x8b, 0x07, 0xff, 0xe0]), WhyEntry::Leaves { at: 3, .. }));
        assert!(matches!(why_entry(&[0x31, 0xc0]), WhyEntry::CodeEnds));
        // No code, and an opcode that does not exist in 64-bit mode.
        assert_eq!(choose(code(&[]), &[], &[]), None);
        assert_eq!(choose(code(&[0x06, 0x55]), &[], &[]), None);
    }

    #[test]
    fn a_jump_back_into_the_prologue() {
        // mov (%rdi),%rax; test %rax,%rax; je +2; jmp to the test (+3); ret
        let bytes = [0x48, 0x8b, 0x07, 0x48, 0x85, 0xc0, 0x74, 2, 0xeb, 0xf9, 0xc3];
        assert!(matches!(why_entry(&bytes), WhyEntry::JumpsIn { to: 3, at: 6, from: VirtAddr(0x1008) }));
        // To the chosen instruction itself, which would be hit twice.
        let bytes = [0x48, 0x8b, 0x07, 0x48, 0x85, 0xc0, 0x74, 2, 0xeb, 0xfc, 0xc3];
        assert!(matches!(why_entry(&bytes), WhyEntry::JumpsIn { to: 6, at: 6, .. }));
        // To the instruction behind it, or to the entry: a new call.
        for back in [0xfe, 0xf6] {
            let bytes = [0x48, 0x8b, 0x07, 0x48, 0x85, 0xc0, 0x74, 2, 0xeb, back, 0xc3];
            assert_eq!(cheap(&bytes).0, 6);
        }
        // A chosen entry does not care.
        assert_eq!(cheap(&[0x55, 0x5d, 0xeb, 0xfd]).0, 0);
    }

    #[test]
    fn a_jump_back_from_the_cold_part() {
        let bytes = [0x48, 0x8b, 0x07, 0x48, 0x85, 0xc0, 0x0f, 0x84, 0xf4, 0x0f, 0, 0, 0xc3];
        let chosen =
            |elsewhere: &[Code64<'_>]| choose(code(&bytes), &[Register::RDI], elsewhere).expect("code");
        assert_eq!(chosen(&[]).skew, 6);
        // 0x2000: jmp 0x1003
        let cold = Code64 { start: VirtAddr(0x2000), bytes: &[0xe9, 0xfe, 0xef, 0xff, 0xff] };
        let choice = chosen(&[cold]);
        assert_eq!(choice.why_entry, Some(WhyEntry::JumpsIn { from: VirtAddr(0x2000), to: 3, at: 6 }));
        // 0x2000: jmp 0x100c, behind the probe
        let cold = Code64 { start: VirtAddr(0x2000), bytes: &[0xe9, 0x07, 0xf0, 0xff, 0xff] };
        assert_eq!(chosen(&[cold]).skew, 6);
    }

    #[test]
    fn a_jump_table_may_lead_anywhere_but_to_a_push() {
        // test %rsi,%rsi; je +2; jmp *%rax; ret
        assert!(matches!(
            why_entry(&[0x48, 0x85, 0xf6, 0x74, 2, 0xff, 0xe0, 0xc3]),
            WhyEntry::MayJumpIn { from: VirtAddr(0x1005), at: 3 }
        ));
        // endbr64; push %rbp; jmp *%rax
        assert_eq!(cheap(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xff, 0xe0]).0, 4);
    }

    #[test]
    fn a_cookie_cannot_say_more_than_255() {
        let far = |padding| [vec![0x48, 0x31, 0xc0]; 1].concat().repeat(padding);
        // 85 times xor %rax,%rax is 255 bytes: the last that fits.
        assert_eq!(cheap(&[far(85), vec![0x55, 0xc3]].concat()).0, 255);
        assert_eq!(why_entry(&[far(86), vec![0x55, 0xc3]].concat()), WhyEntry::TooFar);
    }
}
