//! Declared variables: parameters, and shared memory with its places.

use std::collections::HashMap;

use crate::{
    error::PtxTextError,
    instruction::PtxType,
    shared::{SHARED_BASE, SHARED_BYTES_MAX},
    tokens::PtxCursor,
};

/// The shared variables of a module, at fixed places. A variable of unknown size starts behind all variables of known size.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedVariables {
    places: HashMap<String, u64>,
    pub(crate) bytes: u32,
}

impl SharedVariables {
    /// The address of a variable.
    pub(crate) fn find(&self, name: &str) -> Option<u64> {
        self.places.get(name).copied()
    }

    /// `.shared .align 16 .b8 name[20480];`
    pub(crate) fn declare(&mut self, cursor: &mut PtxCursor<'_>) -> Result<(), PtxTextError> {
        cursor.expect(".shared")?;
        let variable = PtxVariable::parse(cursor)?;
        cursor.expect(";")?;
        let too_large = |found| PtxTextError::TooLarge {
            line: cursor.line(),
            what: "bytes of shared memory",
            found,
            max: SHARED_BYTES_MAX,
        };
        let start = u64::from(self.bytes).next_multiple_of(variable.alignment);
        let end = start.saturating_add(variable.bytes);
        let end = Some(end)
            .filter(|&end| end <= SHARED_BYTES_MAX)
            .ok_or_else(|| too_large(end))?;
        self.bytes = u32::try_from(end).map_err(|_| too_large(end))?;
        if self
            .places
            .insert(variable.name.to_owned(), SHARED_BASE + start)
            .is_some()
        {
            return Err(PtxTextError::DeclaredTwice {
                line: cursor.line(),
                name: variable.name.to_owned(),
            });
        }
        Ok(())
    }
}

/// A declared variable or parameter.
pub(crate) struct PtxVariable<'a> {
    pub(crate) name: &'a str,
    pub(crate) bytes: u64,
    pub(crate) alignment: u64,
}

impl<'a> PtxVariable<'a> {
    /// `.align 8 .b8 name[432]`, or `.u64 name`. An array without a length has 0 bytes.
    pub(crate) fn parse(cursor: &mut PtxCursor<'a>) -> Result<PtxVariable<'a>, PtxTextError> {
        let mut alignment = None;
        if cursor.take(".align") {
            let found = cursor.number_below("an alignment", 1024)?;
            if !found.is_power_of_two() {
                return Err(cursor.unexpected(&found.to_string(), "a power of two"));
            }
            alignment = Some(found);
        }
        let word = cursor.next("a type")?;
        let of = word.strip_prefix('.').and_then(PtxType::named);
        let of = of.filter(|of| of.bits >= 8);
        let bytes = of.map(|of| u64::from(of.bits / 8));
        let bytes = bytes.ok_or_else(|| cursor.unexpected(word, "a type such as .b8"))?;
        // Hints about pointers.
        while let Some(hint) = cursor
            .peek()
            .filter(|hint| [".ptr", ".global", ".align"].contains(hint))
        {
            cursor.next("a hint about a pointer")?;
            if hint == ".align" {
                cursor.number("an alignment")?;
            }
        }
        let name = cursor.next("a name")?;
        let mut length = 1;
        if cursor.take("[") {
            length = match cursor.peek() {
                Some("]") => 0,
                _ => cursor.number_below("elements", SHARED_BYTES_MAX)?,
            };
            cursor.expect("]")?;
        }
        Ok(PtxVariable {
            name,
            bytes: bytes.saturating_mul(length),
            alignment: alignment.unwrap_or(bytes),
        })
    }
}
