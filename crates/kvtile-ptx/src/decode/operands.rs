//! One instruction: its modifiers and its operands.

use super::{KernelText, undeclared};
use crate::{
    counts::CountedSpace,
    error::PtxTextError,
    instruction::{
        BinaryOperation, Comparison, PtxAddress, PtxOperand, PtxOperation, PtxSpace, PtxType,
        RegisterId, SpecialRegister,
    },
    tokens::{PtxCursor, number},
};

/// Cache hints of accesses, which change no result.
const HINTS: [&str; 14] = [
    "ca",
    "cg",
    "cs",
    "cv",
    "lu",
    "wb",
    "wt",
    "L1::no_allocate",
    "L1::evict_first",
    "L1::evict_last",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::128B",
    "L2::256B",
];

/// The width that a register of an operand must have.
#[derive(Clone, Copy)]
enum OperandWidth {
    Exactly(u32),
    AtLeast(u32),
}

impl OperandWidth {
    fn has(self, bits: u32) -> bool {
        match self {
            OperandWidth::Exactly(width) => bits == width,
            OperandWidth::AtLeast(width) => bits >= width && bits > 1,
        }
    }
}

/// An instruction whose operands are read.
pub(super) struct OperandText<'t, 'a, 'm> {
    pub(super) kernel: &'t mut KernelText<'a, 'm>,
    pub(super) cursor: &'t mut PtxCursor<'a>,
    pub(super) opcode: &'a str,
}

impl<'a> OperandText<'_, 'a, '_> {
    fn unknown(&self) -> PtxTextError {
        PtxTextError::UnknownInstruction {
            line: self.cursor.line(),
            opcode: self.opcode.to_owned(),
        }
    }

    pub(super) fn operation(&mut self) -> Result<PtxOperation, PtxTextError> {
        let mut parts: Vec<&str> = self.opcode.split('.').collect();
        let name = parts.remove(0);
        match (name, parts.as_slice()) {
            ("ret" | "exit", []) => Ok(PtxOperation::Return),
            ("bra", [] | ["uni"]) => {
                let label = self.cursor.next("a label")?;
                let at = self.kernel.instructions.len();
                self.kernel.branches.push((at, label, self.cursor.line()));
                // Until all labels are known.
                Ok(PtxOperation::Branch { to: usize::MAX })
            }
            ("bar" | "barrier", ["sync"] | ["sync", "aligned"]) => {
                let number = self.cursor.next("the number of a barrier")?;
                match number {
                    "0" => Ok(PtxOperation::Barrier),
                    _ => Err(self.cursor.unexpected(number, "barrier 0")),
                }
            }
            ("ld" | "st", _) => self.access(name, &parts),
            (_, [modifiers @ .., of]) => {
                let of = PtxType::named(of).ok_or_else(|| self.unknown())?;
                self.arithmetic(name, modifiers, of)
            }
            (_, []) => Err(self.unknown()),
        }
    }

    fn arithmetic(
        &mut self,
        name: &str,
        modifiers: &[&str],
        of: PtxType,
    ) -> Result<PtxOperation, PtxTextError> {
        let exactly = OperandWidth::Exactly(of.bits);
        match (name, modifiers) {
            ("mov", []) => self.moved(of),
            ("cvta", [] | ["to", _]) => self.converted(of, of, exactly),
            ("cvt", [into]) => {
                let into = PtxType::named(into).ok_or_else(|| self.unknown())?;
                self.converted(of, into, OperandWidth::AtLeast(of.bits))
            }
            ("neg", []) => {
                let (to, [from]) = (self.register(exactly)?, self.operands([exactly])?);
                Ok(PtxOperation::Negate { of, to, from })
            }
            ("not", []) => {
                let (to, [from]) = (self.register(exactly)?, self.operands([exactly])?);
                Ok(PtxOperation::Not { of, to, from })
            }
            ("prmt", []) if of.bits == 32 => {
                let (to, from) = (self.register(exactly)?, self.operands([exactly; 3])?);
                Ok(PtxOperation::Permute { to, from })
            }
            ("selp", []) => {
                let predicate = OperandWidth::Exactly(1);
                let (to, [a, b, by]) = (
                    self.register(exactly)?,
                    self.operands([exactly, exactly, predicate])?,
                );
                Ok(PtxOperation::Select {
                    of,
                    to,
                    from: [a, b],
                    by,
                })
            }
            ("setp", [comparison]) => {
                let comparison = self.comparison(comparison)?;
                let to = self.register(OperandWidth::Exactly(1))?;
                let from = self.operands([exactly; 2])?;
                Ok(PtxOperation::Compare {
                    comparison,
                    of,
                    to,
                    from,
                })
            }
            ("mad", [half]) => {
                let product = self.product(half)?;
                let sum = self.width_of(product, of);
                let (to, from) = (self.register(sum)?, self.operands([exactly, exactly, sum])?);
                Ok(PtxOperation::MultiplyAdd {
                    product,
                    of,
                    to,
                    from,
                })
            }
            _ => self.binary(name, modifiers, of),
        }
    }

    fn binary(
        &mut self,
        name: &str,
        modifiers: &[&str],
        of: PtxType,
    ) -> Result<PtxOperation, PtxTextError> {
        let exactly = OperandWidth::Exactly(of.bits);
        let (operation, second) = match (name, modifiers) {
            ("add", []) => (BinaryOperation::Add, exactly),
            ("sub", []) => (BinaryOperation::Subtract, exactly),
            ("mul", [half]) => (self.product(half)?, exactly),
            ("div", []) => (BinaryOperation::Divide, exactly),
            ("rem", []) => (BinaryOperation::Remainder, exactly),
            ("and", []) => (BinaryOperation::And, exactly),
            ("or", []) => (BinaryOperation::Or, exactly),
            ("xor", []) => (BinaryOperation::Xor, exactly),
            ("min", []) => (BinaryOperation::Minimum, exactly),
            ("max", []) => (BinaryOperation::Maximum, exactly),
            ("shl", []) => (BinaryOperation::ShiftLeft, OperandWidth::Exactly(32)),
            ("shr", []) => (BinaryOperation::ShiftRight, OperandWidth::Exactly(32)),
            _ => return Err(self.unknown()),
        };
        let to = self.register(self.width_of(operation, of))?;
        let from = self.operands([exactly, second])?;
        Ok(PtxOperation::Binary {
            operation,
            of,
            to,
            from,
        })
    }

    fn product(&self, half: &str) -> Result<BinaryOperation, PtxTextError> {
        match half {
            "lo" => Ok(BinaryOperation::MultiplyLow),
            "hi" => Ok(BinaryOperation::MultiplyHigh),
            "wide" => Ok(BinaryOperation::MultiplyWide),
            _ => Err(self.unknown()),
        }
    }

    fn comparison(&self, name: &str) -> Result<Comparison, PtxTextError> {
        match name {
            "eq" => Ok(Comparison::Equal),
            "ne" => Ok(Comparison::NotEqual),
            "lt" | "lo" => Ok(Comparison::Less),
            "le" | "ls" => Ok(Comparison::LessOrEqual),
            "gt" | "hi" => Ok(Comparison::Greater),
            "ge" | "hs" => Ok(Comparison::GreaterOrEqual),
            _ => Err(self.unknown()),
        }
    }

    /// The width of the result of `operation`.
    fn width_of(&self, operation: BinaryOperation, of: PtxType) -> OperandWidth {
        OperandWidth::Exactly(match operation {
            BinaryOperation::MultiplyWide => of.bits * 2,
            _ => of.bits,
        })
    }

    fn converted(
        &mut self,
        of: PtxType,
        into: PtxType,
        source: OperandWidth,
    ) -> Result<PtxOperation, PtxTextError> {
        let to = self.register(OperandWidth::AtLeast(into.bits))?;
        let [from] = self.operands([source])?;
        Ok(PtxOperation::Move { of, into, to, from })
    }

    /// A move, or a vector that becomes one value, or one value that becomes a vector.
    fn moved(&mut self, of: PtxType) -> Result<PtxOperation, PtxTextError> {
        let exactly = OperandWidth::Exactly(of.bits);
        if self.cursor.peek() == Some("{") {
            let to = self.vector(|text| text.register(OperandWidth::AtLeast(8)))?;
            let bits = self.part(of, to.len())?;
            let [from] = self.operands([exactly])?;
            return Ok(PtxOperation::Unpack { bits, to, from });
        }
        let to = self.register(exactly)?;
        self.cursor.expect(",")?;
        if self.cursor.peek() == Some("{") {
            let from = self.vector(|text| text.operand(OperandWidth::AtLeast(8)))?;
            let bits = self.part(of, from.len())?;
            return Ok(PtxOperation::Pack { bits, to, from });
        }
        let from = self.operand(exactly)?;
        let into = of;
        Ok(PtxOperation::Move { of, into, to, from })
    }

    /// Bits of one of `parts` parts.
    fn part(&self, of: PtxType, parts: usize) -> Result<u32, PtxTextError> {
        let parts = u32::try_from(parts)
            .ok()
            .filter(|parts| [2, 4].contains(parts));
        parts
            .map(|parts| of.bits / parts)
            .ok_or_else(|| self.unknown())
    }

    fn access(&mut self, name: &str, parts: &[&str]) -> Result<PtxOperation, PtxTextError> {
        let [space, modifiers @ .., of] = parts else {
            return Err(self.unknown());
        };
        let of = PtxType::named(of).filter(|of| of.bits >= 8);
        let of = of.ok_or_else(|| self.unknown())?;
        let mut space = match *space {
            "param" if name == "ld" => PtxSpace::Parameter,
            "shared" => PtxSpace::Shared,
            "global" => PtxSpace::Global,
            _ => return Err(self.unknown()),
        };
        let mut count = 1;
        for modifier in modifiers {
            match *modifier {
                "v2" => count = 2,
                "v4" => count = 4,
                "nc" if space == PtxSpace::Global && name == "ld" => {
                    space = PtxSpace::GlobalConstant;
                }
                hint if HINTS.contains(&hint) => {}
                _ => return Err(self.unknown()),
            }
        }
        if count * of.bits > 128 {
            return Err(self.unknown());
        }
        let wide = OperandWidth::AtLeast(of.bits);
        if name == "ld" {
            let to = self.values(count, |text| text.register(wide))?;
            self.cursor.expect(",")?;
            let at = self.address(space, of, CountedSpace::Load)?;
            return Ok(PtxOperation::Load { at, to });
        }
        let at = self.address(space, of, CountedSpace::Store)?;
        self.cursor.expect(",")?;
        let from = self.values(count, |text| text.operand(wide))?;
        Ok(PtxOperation::Store { at, from })
    }

    /// One value, or `count` in braces.
    fn values<T>(
        &mut self,
        count: u32,
        mut read: impl FnMut(&mut Self) -> Result<T, PtxTextError>,
    ) -> Result<Vec<T>, PtxTextError> {
        if count == 1 {
            return Ok(vec![read(self)?]);
        }
        let values = self.vector(read)?;
        match values.len() == count as usize {
            true => Ok(values),
            false => Err(self.unknown()),
        }
    }

    /// Values in braces, at most four.
    fn vector<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, PtxTextError>,
    ) -> Result<Vec<T>, PtxTextError> {
        self.cursor.expect("{")?;
        let mut values = vec![read(self)?];
        while self.cursor.take(",") {
            values.push(read(self)?);
        }
        self.cursor.expect("}")?;
        match values.len() {
            ..=4 => Ok(values),
            _ => Err(self.unknown()),
        }
    }

    /// `[base+offset]`
    fn address(
        &mut self,
        space: PtxSpace,
        of: PtxType,
        access: CountedSpace,
    ) -> Result<PtxAddress, PtxTextError> {
        self.cursor.expect("[")?;
        let base = self.operand(OperandWidth::AtLeast(32))?;
        let mut offset = 0u64;
        if self.cursor.take("+") {
            let is_negative = self.cursor.take("-");
            let distance = self.cursor.number("an offset")?;
            offset = match is_negative {
                true => distance.wrapping_neg(),
                false => distance,
            };
        }
        self.cursor.expect("]")?;
        let counted = match space {
            PtxSpace::Parameter => None,
            PtxSpace::Shared => Some(CountedSpace::Shared),
            PtxSpace::GlobalConstant => Some(CountedSpace::ConstantLoad),
            PtxSpace::Global => Some(access),
        };
        let site = u32::try_from(self.kernel.sites.len()).unwrap_or(u32::MAX);
        self.kernel.sites.extend(counted);
        Ok(PtxAddress {
            space,
            of,
            base,
            offset,
            site,
        })
    }

    /// The register of a result.
    fn register(&mut self, width: OperandWidth) -> Result<RegisterId, PtxTextError> {
        let name = self.cursor.next("a register")?;
        let found = self.kernel.find(name);
        let (register, bits) = found.ok_or_else(|| undeclared(self.cursor, name))?;
        self.check(width, bits)?;
        Ok(register)
    }

    fn check(&self, width: OperandWidth, bits: u32) -> Result<(), PtxTextError> {
        if width.has(bits) {
            return Ok(());
        }
        Err(PtxTextError::RegisterWidth {
            line: self.cursor.line(),
            opcode: self.opcode.to_owned(),
            bits,
        })
    }

    /// A comma and a source for each width.
    fn operands<const N: usize>(
        &mut self,
        widths: [OperandWidth; N],
    ) -> Result<[PtxOperand; N], PtxTextError> {
        let mut operands = [PtxOperand::Value(0); N];
        for (operand, width) in operands.iter_mut().zip(widths) {
            self.cursor.expect(",")?;
            *operand = self.operand(width)?;
        }
        Ok(operands)
    }

    fn operand(&mut self, width: OperandWidth) -> Result<PtxOperand, PtxTextError> {
        let is_negative = self.cursor.take("-");
        let word = self.cursor.next("an operand")?;
        if let Some(value) = number(word) {
            return Ok(PtxOperand::Value(match is_negative {
                true => value.wrapping_neg(),
                false => value,
            }));
        }
        if is_negative {
            return Err(self.cursor.unexpected(word, "a number"));
        }
        if let Some(special) = special(word) {
            return Ok(special);
        }
        if let Some((register, bits)) = self.kernel.find(word) {
            self.check(width, bits)?;
            return Ok(PtxOperand::Register(register));
        }
        let place = self.kernel.parameters.get(word).copied();
        let place = place.or_else(|| self.kernel.shared.find(word));
        place
            .map(PtxOperand::Value)
            .ok_or_else(|| undeclared(self.cursor, word))
    }
}

/// Registers that the launch sets; launches have one dimension.
fn special(word: &str) -> Option<PtxOperand> {
    Some(match word {
        "%tid.x" => PtxOperand::Special(SpecialRegister::Thread),
        "%ntid.x" => PtxOperand::Special(SpecialRegister::Threads),
        "%ctaid.x" => PtxOperand::Special(SpecialRegister::Block),
        "%nctaid.x" => PtxOperand::Special(SpecialRegister::Blocks),
        "%tid.y" | "%tid.z" | "%ctaid.y" | "%ctaid.z" => PtxOperand::Value(0),
        "%ntid.y" | "%ntid.z" | "%nctaid.y" | "%nctaid.z" => PtxOperand::Value(1),
        _ => return None,
    })
}
