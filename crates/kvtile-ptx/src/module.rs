//! The text of a module: its shared variables and its kernels.

use std::{collections::HashMap, ops::Range};

use crate::{
    counts::CountedSpace,
    decode::KernelText,
    error::PtxTextError,
    instruction::PtxInstruction,
    tokens::PtxCursor,
    variables::{PtxVariable, SharedVariables},
};

/// The longest text that is read.
pub const TEXT_BYTES_MAX: usize = 16 << 20;

/// The address of the first parameter: far from every other address.
pub(crate) const PARAMETER_BASE: u64 = 1 << 60;

/// Most bytes of parameters, the limit of newer devices.
const PARAMETER_BYTES_MAX: u64 = 32_764;

/// Most threads of a block.
const THREADS_MAX: u64 = 1024;

/// A parsed text.
#[derive(Clone, Debug)]
pub struct PtxModule {
    version: (u32, u32),
    target: String,
    kernels: Vec<PtxKernel>,
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct PtxKernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Range<usize>>,
    pub(crate) shared_bytes: u32,
    pub(crate) threads_max: u32,
    /// The name of each register.
    pub(crate) registers: Vec<String>,
    pub(crate) instructions: Vec<PtxInstruction>,
    /// The memory of each access that is counted.
    pub(crate) sites: Vec<CountedSpace>,
}

impl PtxModule {
    /// Parses `text`.
    ///
    /// # Errors
    /// A text that is too long, is no PTX, or has instructions that the interpreter does not know.
    pub fn parse(text: &str) -> Result<PtxModule, PtxTextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(PtxTextError::TooLong {
                bytes: text.len(),
                max: TEXT_BYTES_MAX,
            });
        }
        let mut cursor = PtxCursor::new(text);
        let version = header(&mut cursor)?;
        cursor.expect(".target")?;
        let target = cursor.next("a target")?.to_owned();
        while cursor.take(",") {
            cursor.next("a target")?;
        }
        cursor.expect(".address_size")?;
        let bits = cursor.next("64")?;
        if bits != "64" {
            return Err(cursor.unexpected(bits, "64"));
        }
        let mut shared = SharedVariables::default();
        let mut kernels: Vec<PtxKernel> = Vec::new();
        while let Some(next) = cursor.peek() {
            match next {
                ".visible" | ".extern" | ".weak" => {
                    cursor.next("a linkage")?;
                }
                ".shared" => shared.declare(&mut cursor)?,
                ".entry" => {
                    let kernel = kernel(&mut cursor, &mut shared)?;
                    if kernels.iter().any(|known| known.name == kernel.name) {
                        return Err(PtxTextError::DeclaredTwice {
                            line: cursor.line(),
                            name: kernel.name,
                        });
                    }
                    kernels.push(kernel);
                }
                _ => {
                    let found = cursor.next("a kernel")?;
                    return Err(cursor.unexpected(found, "a shared variable or a kernel"));
                }
            }
        }
        for kernel in &mut kernels {
            kernel.shared_bytes = shared.bytes;
        }
        Ok(PtxModule {
            version,
            target,
            kernels,
        })
    }

    /// The version of the instruction set that the text states, for instance `(7, 4)`.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The oldest device that the text is for, for instance `sm_80`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The kernels, in the order of the text.
    #[must_use]
    pub fn kernels(&self) -> &[PtxKernel] {
        &self.kernels
    }
}

impl PtxKernel {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes of each parameter in the packed parameters.
    #[must_use]
    pub fn parameters(&self) -> &[Range<usize>] {
        &self.parameters
    }

    /// Bytes of all parameters.
    #[must_use]
    pub fn parameter_bytes(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.end)
    }

    /// Bytes of shared memory that the text declares.
    #[must_use]
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// Most threads of a block.
    #[must_use]
    pub fn threads_max(&self) -> u32 {
        self.threads_max
    }
}

/// `.version 7.4`
fn header(cursor: &mut PtxCursor<'_>) -> Result<(u32, u32), PtxTextError> {
    cursor.expect(".version")?;
    let found = cursor.next("a version")?;
    let parts = found.split_once('.');
    let version = parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    version.ok_or_else(|| cursor.unexpected(found, "a version such as 7.4"))
}

/// `.entry name(parameters) .maxntid 256, 1, 1 { … }`
fn kernel(
    cursor: &mut PtxCursor<'_>,
    shared: &mut SharedVariables,
) -> Result<PtxKernel, PtxTextError> {
    cursor.expect(".entry")?;
    let name = cursor.next("the name of a kernel")?.to_owned();
    let mut parameters = Vec::new();
    let mut names = HashMap::new();
    cursor.expect("(")?;
    while !cursor.take(")") {
        if !parameters.is_empty() {
            cursor.expect(",")?;
        }
        cursor.expect(".param")?;
        let parameter = PtxVariable::parse(cursor)?;
        let end = parameters.last().map_or(0, |last: &Range<u64>| last.end);
        let start = end.next_multiple_of(parameter.alignment);
        let end = start.saturating_add(parameter.bytes);
        if end > PARAMETER_BYTES_MAX {
            return Err(PtxTextError::TooLarge {
                line: cursor.line(),
                what: "bytes of parameters",
                found: end,
                max: PARAMETER_BYTES_MAX,
            });
        }
        parameters.push(start..end);
        names.insert(parameter.name, PARAMETER_BASE + start);
    }
    let threads_max = limits(cursor)?;
    let mut text = KernelText::new(names, shared);
    text.body(cursor)?;
    let (registers, instructions, sites) = text.finish()?;
    let in_bytes = |range: Range<u64>| -> Option<Range<usize>> {
        Some(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    };
    let parameters: Option<Vec<Range<usize>>> = parameters.into_iter().map(in_bytes).collect();
    Ok(PtxKernel {
        name,
        parameters: parameters.unwrap_or_default(),
        shared_bytes: 0,
        threads_max,
        registers,
        instructions,
        sites,
    })
}

/// The directives between the parameters and the body; returns the most threads of a block.
fn limits(cursor: &mut PtxCursor<'_>) -> Result<u32, PtxTextError> {
    let mut threads_max = THREADS_MAX;
    loop {
        match cursor.peek() {
            Some(".maxntid" | ".reqntid") => {
                cursor.next("a directive")?;
                threads_max = cursor.number_below("threads of a block", THREADS_MAX)?;
                while cursor.take(",") {
                    cursor.number_below("threads along y and z", 1)?;
                }
            }
            Some(".minnctapersm" | ".maxnreg") => {
                cursor.next("a directive")?;
                cursor.number("a number")?;
            }
            _ => return Ok(u32::try_from(threads_max).unwrap_or(u32::MAX)),
        }
    }
}
