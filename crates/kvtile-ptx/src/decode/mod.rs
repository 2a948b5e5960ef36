//! The body of a kernel: registers, labels and instructions.

mod operands;

use std::collections::HashMap;

use self::operands::OperandText;

use crate::{
    counts::CountedSpace,
    error::PtxTextError,
    instruction::{PtxInstruction, PtxOperation, PtxType, RegisterId},
    tokens::PtxCursor,
    variables::SharedVariables,
};

/// Most registers of a kernel. Compilers give every value one of its own.
const REGISTERS_MAX: u64 = 1 << 13;

/// A name that stands for registers.
#[derive(Clone, Copy, Debug)]
struct Registers {
    first: u32,
    /// Their number, where a number follows the name.
    count: Option<u32>,
    bits: u32,
}

/// A kernel while its text is read.
pub(crate) struct KernelText<'a, 'm> {
    parameters: HashMap<&'a str, u64>,
    shared: &'m mut SharedVariables,
    /// The registers of each open brace, the innermost last.
    scopes: Vec<HashMap<&'a str, Registers>>,
    registers: Vec<String>,
    instructions: Vec<PtxInstruction>,
    labels: HashMap<&'a str, usize>,
    /// Branches whose label may follow: the instruction, the label and its line.
    branches: Vec<(usize, &'a str, u32)>,
    sites: Vec<CountedSpace>,
}

/// The registers, the instructions, and the memory of each counted access.
type KernelParts = (Vec<String>, Vec<PtxInstruction>, Vec<CountedSpace>);

impl<'a, 'm> KernelText<'a, 'm> {
    pub(crate) fn new(
        parameters: HashMap<&'a str, u64>,
        shared: &'m mut SharedVariables,
    ) -> KernelText<'a, 'm> {
        KernelText {
            parameters,
            shared,
            scopes: Vec::new(),
            registers: Vec::new(),
            instructions: Vec::new(),
            labels: HashMap::new(),
            branches: Vec::new(),
            sites: Vec::new(),
        }
    }

    /// Reads from the opening brace to the closing one.
    pub(crate) fn body(&mut self, cursor: &mut PtxCursor<'a>) -> Result<(), PtxTextError> {
        cursor.expect("{")?;
        self.scopes.push(HashMap::new());
        while !self.scopes.is_empty() {
            match cursor.peek() {
                Some("{") => {
                    cursor.expect("{")?;
                    self.scopes.push(HashMap::new());
                }
                Some("}") => {
                    cursor.expect("}")?;
                    self.scopes.pop();
                }
                Some(".reg") => self.declare(cursor)?,
                Some(".shared") => self.shared.declare(cursor)?,
                Some(".loc" | ".pragma" | ".file") => while cursor.next(";")? != ";" {},
                _ if cursor.peek_second() == Some(":") => {
                    let name = cursor.next("a label")?;
                    cursor.expect(":")?;
                    if self.labels.insert(name, self.instructions.len()).is_some() {
                        return Err(PtxTextError::DeclaredTwice {
                            line: cursor.line(),
                            name: name.to_owned(),
                        });
                    }
                }
                _ => self.instruction(cursor)?,
            }
        }
        Ok(())
    }

    /// Resolves the branches.
    pub(crate) fn finish(mut self) -> Result<KernelParts, PtxTextError> {
        for (instruction, label, line) in self.branches {
            let to = self.labels.get(label).copied();
            let to = to.ok_or_else(|| PtxTextError::Undeclared {
                line,
                name: label.to_owned(),
            })?;
            if let Some(branch) = self.instructions.get_mut(instruction) {
                branch.operation = PtxOperation::Branch { to };
            }
        }
        Ok((self.registers, self.instructions, self.sites))
    }

    /// `.reg .b32 %r<104>, tmp;`
    fn declare(&mut self, cursor: &mut PtxCursor<'a>) -> Result<(), PtxTextError> {
        cursor.expect(".reg")?;
        let word = cursor.next("a type")?;
        let of = word.strip_prefix('.').and_then(PtxType::named);
        let of = of.ok_or_else(|| cursor.unexpected(word, "the type of registers"))?;
        loop {
            let name = cursor.next("the name of a register")?;
            let count = match cursor.take("<") {
                true => {
                    let count = cursor.number_below("registers", REGISTERS_MAX)?;
                    cursor.expect(">")?;
                    u32::try_from(count).ok()
                }
                false => None,
            };
            let first = self.registers.len() as u64;
            if first + u64::from(count.unwrap_or(1)) > REGISTERS_MAX {
                return Err(PtxTextError::TooLarge {
                    line: cursor.line(),
                    what: "registers",
                    found: first + u64::from(count.unwrap_or(1)),
                    max: REGISTERS_MAX,
                });
            }
            match count {
                Some(count) => self
                    .registers
                    .extend((0..count).map(|i| format!("{name}{i}"))),
                None => self.registers.push(name.to_owned()),
            }
            let declared = Registers {
                first: u32::try_from(first).unwrap_or(u32::MAX),
                count,
                bits: of.bits,
            };
            let scope = self.scopes.last_mut();
            if scope.is_some_and(|scope| scope.insert(name, declared).is_some()) {
                return Err(PtxTextError::DeclaredTwice {
                    line: cursor.line(),
                    name: name.to_owned(),
                });
            }
            if !cursor.take(",") {
                return cursor.expect(";");
            }
        }
    }

    /// The register called `name`, with its bits.
    fn find(&self, name: &str) -> Option<(RegisterId, u32)> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (family, digits) = name.split_at_checked(name.len() - digits)?;
        self.scopes.iter().rev().find_map(|scope| {
            if let Some(one) = scope.get(name).filter(|one| one.count.is_none()) {
                return Some((RegisterId(one.first), one.bits));
            }
            let many = scope.get(family)?;
            let index: u32 = digits.parse().ok()?;
            let index =
                Some(index).filter(|&index| many.count.is_some_and(|count| index < count))?;
            Some((RegisterId(many.first + index), many.bits))
        })
    }

    fn instruction(&mut self, cursor: &mut PtxCursor<'a>) -> Result<(), PtxTextError> {
        let mut guard = None;
        if cursor.take("@") {
            let value = !cursor.take("!");
            let name = cursor.next("a predicate")?;
            let (register, bits) = self.find(name).ok_or_else(|| undeclared(cursor, name))?;
            if bits != 1 {
                return Err(cursor.unexpected(name, "a predicate"));
            }
            guard = Some((register, value));
        }
        let opcode = cursor.next("an instruction")?;
        let line = cursor.line();
        let mut reader = OperandText {
            kernel: self,
            cursor,
            opcode,
        };
        let operation = reader.operation()?;
        cursor.expect(";")?;
        self.instructions.push(PtxInstruction {
            line,
            guard,
            operation,
        });
        Ok(())
    }
}

fn undeclared(cursor: &PtxCursor<'_>, name: &str) -> PtxTextError {
    PtxTextError::Undeclared {
        line: cursor.line(),
        name: name.to_owned(),
    }
}
