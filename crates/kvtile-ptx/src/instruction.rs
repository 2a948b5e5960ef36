//! Instructions with their registers resolved to numbers.

/// A register of a kernel, by its position among all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegisterId(pub(crate) u32);

/// A source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PtxOperand {
    Register(RegisterId),
    /// A number, or the address of a parameter or of a shared variable.
    Value(u64),
    Special(SpecialRegister),
}

/// A register that the launch sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecialRegister {
    Thread,
    Threads,
    Block,
    Blocks,
}

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PtxType {
    pub(crate) bits: u32,
    pub(crate) is_signed: bool,
}

impl PtxType {
    /// The type called `name`; predicates have one bit.
    pub(crate) fn named(name: &str) -> Option<PtxType> {
        if name == "pred" {
            return Some(PtxType {
                bits: 1,
                is_signed: false,
            });
        }
        let (kind, bits) = name.split_at_checked(1)?;
        let bits: u32 = bits.parse().ok()?;
        let known = matches!(kind, "b" | "u" | "s") && matches!(bits, 8 | 16 | 32 | 64);
        known.then_some(PtxType {
            bits,
            is_signed: kind == "s",
        })
    }

    /// All bits of the type.
    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// `value` extended to 64 bits by its sign, or by zeros where the type has none.
    pub(crate) fn extended(self, value: u64) -> u64 {
        let value = value & self.mask();
        let sign = 1u64 << (self.bits - 1);
        match self.is_signed && value & sign != 0 {
            true => value | !self.mask(),
            false => value,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinaryOperation {
    Add,
    Subtract,
    MultiplyLow,
    MultiplyHigh,
    /// The result has twice the bits.
    MultiplyWide,
    Divide,
    Remainder,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    Minimum,
    Maximum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// The memory of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PtxSpace {
    Parameter,
    Shared,
    Global,
    /// Loads of global memory that nothing writes during the launch.
    GlobalConstant,
}

/// An access: `parts` values of `of.bits` bits each, at the sum of `base` and `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PtxAddress {
    pub(crate) space: PtxSpace,
    pub(crate) of: PtxType,
    pub(crate) base: PtxOperand,
    pub(crate) offset: u64,
    /// The number of the access among those of its kernel.
    pub(crate) site: u32,
}

/// What an instruction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PtxOperation {
    Binary {
        operation: BinaryOperation,
        of: PtxType,
        to: RegisterId,
        from: [PtxOperand; 2],
    },
    /// A product and a sum.
    MultiplyAdd {
        product: BinaryOperation,
        of: PtxType,
        to: RegisterId,
        from: [PtxOperand; 3],
    },
    Negate {
        of: PtxType,
        to: RegisterId,
        from: PtxOperand,
    },
    Not {
        of: PtxType,
        to: RegisterId,
        from: PtxOperand,
    },
    /// Also conversions: the value of `of` becomes one of `into`.
    Move {
        of: PtxType,
        into: PtxType,
        to: RegisterId,
        from: PtxOperand,
    },
    /// Several values become one, the first the lowest bits.
    Pack {
        bits: u32,
        to: RegisterId,
        from: Vec<PtxOperand>,
    },
    Unpack {
        bits: u32,
        to: Vec<RegisterId>,
        from: PtxOperand,
    },
    Compare {
        comparison: Comparison,
        of: PtxType,
        to: RegisterId,
        from: [PtxOperand; 2],
    },
    Select {
        of: PtxType,
        to: RegisterId,
        from: [PtxOperand; 2],
        by: PtxOperand,
    },
    /// Four bytes out of eight.
    Permute {
        to: RegisterId,
        from: [PtxOperand; 3],
    },
    Load {
        at: PtxAddress,
        to: Vec<RegisterId>,
    },
    Store {
        at: PtxAddress,
        from: Vec<PtxOperand>,
    },
    Branch {
        to: usize,
    },
    Barrier,
    Return,
}

/// An instruction with its line and its guard: the predicate and the value with which it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PtxInstruction {
    pub(crate) line: u32,
    pub(crate) guard: Option<(RegisterId, bool)>,
    pub(crate) operation: PtxOperation,
}
