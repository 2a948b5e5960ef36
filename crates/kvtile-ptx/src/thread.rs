//! One thread: its registers, and its instructions up to the next barrier.

use crate::{
    counts::WarpAccesses,
    error::PtxFaultKind,
    evaluate::{binary, compare, doubled, permute},
    instruction::{
        BinaryOperation, PtxAddress, PtxInstruction, PtxOperand, PtxOperation, PtxSpace, PtxType,
        RegisterId, SpecialRegister,
    },
    memory::PtxMemory,
    module::{PARAMETER_BASE, PtxKernel},
    shared::PtxShared,
};

/// The bytes of the widest access.
const ACCESS_BYTES: usize = 16;

/// Where a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadState {
    /// Behind the barrier of this instruction.
    Waits(usize),
    Ended,
    /// Before its first instruction.
    New,
}

/// The registers of a thread and its next instruction.
#[derive(Clone, Debug)]
pub(crate) struct PtxThread {
    registers: Vec<Option<u64>>,
    pub(crate) next: usize,
    pub(crate) state: ThreadState,
}

/// The surroundings of a thread.
pub(crate) struct PtxSurroundings<'l> {
    pub(crate) kernel: &'l PtxKernel,
    pub(crate) parameters: &'l [u8],
    pub(crate) memory: &'l mut dyn PtxMemory,
    pub(crate) shared: PtxShared,
    pub(crate) accesses: WarpAccesses,
    pub(crate) threads: u32,
    pub(crate) block: u32,
    pub(crate) blocks: u32,
    /// The thread that runs.
    pub(crate) thread: u32,
    pub(crate) lane: usize,
    pub(crate) instructions: u64,
    pub(crate) instructions_max: u64,
}

impl PtxThread {
    pub(crate) fn new(registers: usize) -> PtxThread {
        PtxThread {
            registers: vec![None; registers],
            next: 0,
            state: ThreadState::New,
        }
    }

    /// Forgets all values, for the next block.
    pub(crate) fn clear(&mut self) {
        self.registers.fill(None);
        (self.next, self.state) = (0, ThreadState::New);
    }

    /// Runs to the next barrier or to the end.
    pub(crate) fn run(&mut self, around: &mut PtxSurroundings<'_>) -> Result<(), PtxFaultKind> {
        let kernel = around.kernel;
        loop {
            let instruction = kernel.instructions.get(self.next);
            let instruction = instruction.ok_or(PtxFaultKind::NoReturn)?;
            around.instructions += 1;
            if around.instructions > around.instructions_max {
                return Err(PtxFaultKind::Endless {
                    max: around.instructions_max,
                });
            }
            if let Some((predicate, value)) = instruction.guard
                && (self.register(predicate, around)? != 0) != value
            {
                self.next += 1;
                continue;
            }
            match &instruction.operation {
                PtxOperation::Branch { to } => self.next = *to,
                PtxOperation::Barrier => {
                    self.state = ThreadState::Waits(self.next);
                    self.next += 1;
                    return Ok(());
                }
                PtxOperation::Return => {
                    self.state = ThreadState::Ended;
                    return Ok(());
                }
                _ => {
                    self.execute(instruction, around)?;
                    self.next += 1;
                }
            }
        }
    }

    fn execute(
        &mut self,
        instruction: &PtxInstruction,
        around: &mut PtxSurroundings<'_>,
    ) -> Result<(), PtxFaultKind> {
        let (to, value) = match &instruction.operation {
            PtxOperation::Binary {
                operation,
                of,
                to,
                from,
            } => (*to, self.binary(*operation, *of, from, around)?),
            PtxOperation::MultiplyAdd {
                product,
                of,
                to,
                from,
            } => (*to, self.multiply_add(*product, *of, from, around)?),
            PtxOperation::Negate { of, to, from } => {
                (*to, self.value(*from, around)?.wrapping_neg() & of.mask())
            }
            PtxOperation::Not { of, to, from } => (*to, !self.value(*from, around)? & of.mask()),
            PtxOperation::Move { of, into, to, from } => {
                let value = of.extended(self.value(*from, around)?);
                (*to, value & into.mask())
            }
            PtxOperation::Compare {
                comparison,
                of,
                to,
                from: [a, b],
            } => {
                let (a, b) = (self.value(*a, around)?, self.value(*b, around)?);
                (*to, u64::from(compare(*comparison, *of, a, b)))
            }
            PtxOperation::Select {
                of,
                to,
                from: [a, b],
                by,
            } => {
                let chosen = match self.value(*by, around)? {
                    0 => *b,
                    _ => *a,
                };
                (*to, self.value(chosen, around)? & of.mask())
            }
            PtxOperation::Permute {
                to,
                from: [a, b, c],
            } => {
                let (a, b) = (self.value(*a, around)?, self.value(*b, around)?);
                (*to, permute(a, b, self.value(*c, around)?))
            }
            PtxOperation::Pack { bits, to, from } => (*to, self.pack(*bits, from, around)?),
            PtxOperation::Unpack { bits, to, from } => {
                return self.unpack(*bits, to, *from, around);
            }
            PtxOperation::Load { at, to } => return self.load(at, to, around),
            PtxOperation::Store { at, from } => return self.store(at, from, around),
            // `run` has these.
            PtxOperation::Branch { .. } | PtxOperation::Barrier | PtxOperation::Return => {
                return Ok(());
            }
        };
        self.set(to, value);
        Ok(())
    }

    fn binary(
        &self,
        operation: BinaryOperation,
        of: PtxType,
        [a, b]: &[PtxOperand; 2],
        around: &PtxSurroundings<'_>,
    ) -> Result<u64, PtxFaultKind> {
        let (a, b) = (self.value(*a, around)?, self.value(*b, around)?);
        let b = match operation {
            // A shift counts without a sign.
            BinaryOperation::ShiftLeft | BinaryOperation::ShiftRight => (b & 0xffff_ffff).min(64),
            _ => b,
        };
        binary(operation, of, a, b).ok_or(PtxFaultKind::DivisionByZero)
    }

    fn multiply_add(
        &self,
        product: BinaryOperation,
        of: PtxType,
        [a, b, c]: &[PtxOperand; 3],
        around: &PtxSurroundings<'_>,
    ) -> Result<u64, PtxFaultKind> {
        let (a, b) = (self.value(*a, around)?, self.value(*b, around)?);
        let sum = match product {
            BinaryOperation::MultiplyWide => doubled(of),
            _ => of,
        };
        let product = binary(product, of, a, b).ok_or(PtxFaultKind::DivisionByZero)?;
        Ok(product.wrapping_add(self.value(*c, around)?) & sum.mask())
    }

    fn pack(
        &self,
        bits: u32,
        from: &[PtxOperand],
        around: &PtxSurroundings<'_>,
    ) -> Result<u64, PtxFaultKind> {
        let mut result = 0;
        for (part, from) in (0u32..).zip(from) {
            let value = self.value(*from, around)? & (u64::MAX >> (64 - bits));
            result |= value << (part * bits);
        }
        Ok(result)
    }

    fn unpack(
        &mut self,
        bits: u32,
        to: &[RegisterId],
        from: PtxOperand,
        around: &PtxSurroundings<'_>,
    ) -> Result<(), PtxFaultKind> {
        let value = self.value(from, around)?;
        for (part, to) in (0u32..).zip(to) {
            self.set(*to, (value >> (part * bits)) & (u64::MAX >> (64 - bits)));
        }
        Ok(())
    }

    fn set(&mut self, to: RegisterId, value: u64) {
        if let Some(register) = self.registers.get_mut(to.0 as usize) {
            *register = Some(value);
        }
    }

    fn register(
        &self,
        register: RegisterId,
        around: &PtxSurroundings<'_>,
    ) -> Result<u64, PtxFaultKind> {
        let value = self.registers.get(register.0 as usize).copied().flatten();
        value.ok_or_else(|| PtxFaultKind::UnwrittenRegister {
            register: around
                .kernel
                .registers
                .get(register.0 as usize)
                .cloned()
                .unwrap_or_default(),
        })
    }

    fn value(
        &self,
        operand: PtxOperand,
        around: &PtxSurroundings<'_>,
    ) -> Result<u64, PtxFaultKind> {
        Ok(match operand {
            PtxOperand::Register(register) => self.register(register, around)?,
            PtxOperand::Value(value) => value,
            PtxOperand::Special(SpecialRegister::Thread) => u64::from(around.thread),
            PtxOperand::Special(SpecialRegister::Threads) => u64::from(around.threads),
            PtxOperand::Special(SpecialRegister::Block) => u64::from(around.block),
            PtxOperand::Special(SpecialRegister::Blocks) => u64::from(around.blocks),
        })
    }

    /// The address of an access, and its bytes.
    fn locate(
        &self,
        access: &'static str,
        at: &PtxAddress,
        parts: usize,
        around: &mut PtxSurroundings<'_>,
    ) -> Result<(u64, usize), PtxFaultKind> {
        let address = self.value(at.base, around)?.wrapping_add(at.offset);
        let bytes = parts * (at.of.bits as usize / 8);
        if !address.is_multiple_of(bytes as u64) {
            return Err(PtxFaultKind::Misaligned {
                access,
                address,
                bytes,
            });
        }
        if at.space != PtxSpace::Parameter {
            around
                .accesses
                .enter(at.site, around.lane, address, bytes)?;
        }
        Ok((address, bytes))
    }

    fn load(
        &mut self,
        at: &PtxAddress,
        to: &[RegisterId],
        around: &mut PtxSurroundings<'_>,
    ) -> Result<(), PtxFaultKind> {
        let (address, bytes) = self.locate("load", at, to.len(), around)?;
        let mut buffer = [0; ACCESS_BYTES];
        let refused = PtxFaultKind::Refused {
            access: "load",
            address,
            bytes,
        };
        let into = buffer.get_mut(..bytes).ok_or(refused.clone())?;
        match at.space {
            PtxSpace::Parameter => parameter(around.parameters, address, into)?,
            PtxSpace::Shared => around.shared.read(around.thread, address, into)?,
            PtxSpace::Global | PtxSpace::GlobalConstant => {
                if !around.memory.read(address, into) {
                    return Err(refused);
                }
            }
        }
        let each = at.of.bits as usize / 8;
        for (to, part) in to.iter().zip(into.chunks(each)) {
            let mut value = [0; 8];
            for (to, from) in value.iter_mut().zip(part) {
                *to = *from;
            }
            // A wider register takes the extended value.
            self.set(*to, at.of.extended(u64::from_le_bytes(value)));
        }
        Ok(())
    }

    fn store(
        &mut self,
        at: &PtxAddress,
        from: &[PtxOperand],
        around: &mut PtxSurroundings<'_>,
    ) -> Result<(), PtxFaultKind> {
        let (address, bytes) = self.locate("store", at, from.len(), around)?;
        let mut buffer = [0; ACCESS_BYTES];
        let each = at.of.bits as usize / 8;
        for (to, from) in buffer.chunks_mut(each).zip(from) {
            let value = self.value(*from, around)?.to_le_bytes();
            for (to, from) in to.iter_mut().zip(value) {
                *to = from;
            }
        }
        let refused = PtxFaultKind::Refused {
            access: "store",
            address,
            bytes,
        };
        let from = buffer.get(..bytes).ok_or(refused.clone())?;
        match at.space {
            PtxSpace::Shared => around.shared.write(around.thread, address, from),
            PtxSpace::Global if around.memory.write(address, from) => Ok(()),
            PtxSpace::Global | PtxSpace::GlobalConstant | PtxSpace::Parameter => Err(refused),
        }
    }
}

fn parameter(parameters: &[u8], address: u64, into: &mut [u8]) -> Result<(), PtxFaultKind> {
    let bytes = into.len();
    let start = address
        .checked_sub(PARAMETER_BASE)
        .and_then(|at| usize::try_from(at).ok());
    let found = start.and_then(|start| parameters.get(start..start.checked_add(bytes)?));
    let found = found.ok_or(PtxFaultKind::Outside {
        access: "load",
        address,
        bytes,
        space: "parameters",
    })?;
    into.copy_from_slice(found);
    Ok(())
}
