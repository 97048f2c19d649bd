//! Reading machine code: the instructions of a range, what it calls, what it loads.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::{
    addr::VirtAddr,
    elf::{FunctionRange, Image},
};

/// Code of one range, with the address of its first byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code64<'a> {
    pub(super) start: VirtAddr,
    pub(super) bytes: &'a [u8],
}

impl<'a> Code64<'a> {
    /// The bytes of a range as the file has them.
    pub(super) fn of(image: &'a Image, range: FunctionRange) -> Option<Self> {
        let len = usize::try_from(range.end.0.checked_sub(range.start.0)?).ok()?;
        let bytes = image.bytes_at(range.start, len).filter(|bytes| bytes.len() == len)?;
        image.is_code(range.start).then_some(Self { start: range.start, bytes })
    }

    /// Its instructions, up to the first byte that is none.
    pub(super) fn instructions(self) -> impl Iterator<Item = Instruction> + 'a {
        Decoder::with_ip(64, self.bytes, self.start.0, DecoderOptions::NONE)
            .into_iter()
            .take_while(|instruction| !instruction.is_invalid())
    }

    /// The bytes of one of its instructions.
    pub(super) fn bytes_of(self, instruction: &Instruction) -> &'a [u8] {
        let at = instruction.ip().wrapping_sub(self.start.0) as usize;
        self.bytes.get(at..at + instruction.len()).unwrap_or_default()
    }

    /// Whether it calls `target` directly, or ends in a jump there.
    pub(super) fn calls(self, target: VirtAddr) -> bool {
        self.instructions().any(|instruction| branch_target(&instruction) == Some(target))
    }

    /// Whether it has an instruction that returns, or one that cannot be read.
    pub(super) fn returns(self) -> bool {
        let mut end = self.start.0;
        let returns = self.instructions().any(|instruction| {
            end = instruction.next_ip();
            instruction.flow_control() == FlowControl::Return
        });
        returns || end != self.start.0 + self.bytes.len() as u64
    }

    /// Whether it loads `value` into the second argument.
    pub(super) fn loads_second_argument(self, value: u32) -> bool {
        self.instructions().any(|instruction| {
            instruction.code() == Code::Mov_r32_imm32
                && instruction.op0_register() == Register::ESI
                && instruction.immediate32() == value
        })
    }

    /// The constant addresses it loads into the third argument, each once: relative to the
    /// instruction, or absolute in a binary with fixed addresses.
    pub(super) fn third_argument_addresses(self) -> Vec<VirtAddr> {
        let mut addresses = Vec::new();
        for instruction in self.instructions() {
            let loaded = match instruction.code() {
                Code::Lea_r64_m if instruction.op0_register() == Register::RDX => {
                    instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address())
                }
                Code::Mov_r32_imm32 if instruction.op0_register() == Register::EDX => {
                    Some(u64::from(instruction.immediate32()))
                }
                _ => None,
            };
            if let Some(address) = loaded.map(VirtAddr)
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        addresses
    }
}

/// Where a direct call, jump or conditional jump goes.
pub(super) fn branch_target(instruction: &Instruction) -> Option<VirtAddr> {
    (instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64)
        .then(|| VirtAddr(instruction.near_branch64()))
}

/// Whether control comes back to the next instruction.
pub(super) fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

/// Whether control may go from here to a place that the instruction does not name.
pub(super) fn is_indirect_jump(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::IndirectBranch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(bytes: &[u8]) -> Code64<'_> {
        Code64 { start: VirtAddr(0x1000), bytes }
    }

    #[test]
    fn calls_are_direct_ones_and_tail_jumps() {
        // call 0x1010; jmp 0x1020; call *%rax
        let bytes = [0xe8, 0x0b, 0, 0, 0, 0xe9, 0x16, 0, 0, 0, 0xff, 0xd0];
        assert!(code(&bytes).calls(VirtAddr(0x1010)));
        assert!(code(&bytes).calls(VirtAddr(0x1020)));
        assert!(!code(&bytes).calls(VirtAddr(0x1030)));
    }

    #[test]
    fn what_returns_is_told_and_so_is_what_cannot_be_read() {
        // nop; jmp to itself
        assert!(!code(&[0x90, 0xeb, 0xfe]).returns());
        // jmp over a ret, which something else may jump to
        assert!(code(&[0xeb, 1, 0xc3, 0xeb, 0xfe]).returns());
        // ret $8
        assert!(code(&[0x90, 0xc2, 8, 0]).returns());
        // nop; half of a call; no instruction
        assert!(code(&[0x90, 0xe8, 0]).returns());
        assert!(code(&[0x90, 0x06, 0xeb, 0xfe]).returns());
    }

    #[test]
    fn third_arguments_of_both_kinds_of_binary() {
        // lea 0x100(%rip),%rdx; lea 0x8(%rbx),%rdx; lea 0x100(%rip),%rcx; mov $0x8734a0,%edx
        let bytes = [
            0x48, 0x8d, 0x15, 0, 1, 0, 0, 0x48, 0x8d, 0x53, 8, 0x48, 0x8d, 0x0d, 0, 1, 0, 0, 0xba, 0xa0,
            0x34, 0x87, 0,
        ];
        assert_eq!(code(&bytes).third_argument_addresses(), [VirtAddr(0x1107), VirtAddr(0x8734a0)]);
    }

    #[test]
    fn the_tag_is_an_immediate_in_esi() {
        // mov $0xdf,%esi; mov $0xd6,%edi
        let bytes = [0xbe, 0xdf, 0, 0, 0, 0xbf, 0xd6, 0, 0, 0];
        assert!(code(&bytes).loads_second_argument(223));
        assert!(!code(&bytes).loads_second_argument(214));
    }
}
