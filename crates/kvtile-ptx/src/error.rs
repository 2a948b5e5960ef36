//! Texts that are not PTX this crate knows, launches it refuses, and faults of a kernel.

use thiserror::Error;

/// A text that the interpreter does not take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PtxTextError {
    /// A text above the limit.
    #[error("a PTX text of {bytes} bytes; at most {max} are read")]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Most bytes that are read.
        max: usize,
    },
    /// A token in a place where another belongs.
    #[error("line {line} of the PTX text: {found:?} in place of {expected}")]
    Unexpected {
        /// The line, from 1.
        line: u32,
        /// The token, or nothing at the end of the text.
        found: String,
        /// The token that belongs there.
        expected: &'static str,
    },
    /// An instruction, a modifier or a type that the interpreter does not have.
    #[error(
        "line {line} of the PTX text: the interpreter does not have the instruction {opcode:?}"
    )]
    UnknownInstruction {
        /// The line, from 1.
        line: u32,
        /// The opcode with its modifiers.
        opcode: String,
    },
    /// A register, a label, a parameter or a variable that the text does not declare.
    #[error("line {line} of the PTX text: {name:?} is not declared")]
    Undeclared {
        /// The line, from 1.
        line: u32,
        /// The name.
        name: String,
    },
    /// A name that is declared twice.
    #[error("line {line} of the PTX text: {name:?} is declared twice")]
    DeclaredTwice {
        /// The line, from 1.
        line: u32,
        /// The name.
        name: String,
    },
    /// A register whose width is not that of the instruction's type.
    #[error("line {line} of the PTX text: {opcode:?} of a register of {bits} bits")]
    RegisterWidth {
        /// The line, from 1.
        line: u32,
        /// The opcode with its modifiers.
        opcode: String,
        /// Bits of the register.
        bits: u32,
    },
    /// A number above what is allowed in its place.
    #[error("line {line} of the PTX text: {what} of {found}; at most {max}")]
    TooLarge {
        /// The line, from 1.
        line: u32,
        /// The quantity.
        what: &'static str,
        /// Its value.
        found: u64,
        /// Its largest value.
        max: u64,
    },
}

/// A launch that did not end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PtxLaunchError {
    /// A kernel that the text does not have.
    #[error("no kernel {name:?}; the text has {}", known.join(", "))]
    NoKernel {
        /// The name.
        name: String,
        /// The kernels of the text.
        known: Vec<String>,
    },
    /// Parameters of another size than the kernel declares.
    #[error("{found} bytes of parameters for the kernel {kernel}, which takes {expected}")]
    Parameters {
        /// The kernel.
        kernel: String,
        /// Bytes that it declares.
        expected: usize,
        /// Bytes of the launch.
        found: usize,
    },
    /// A block without threads, or with more than the kernel allows.
    #[error("blocks of {threads} threads for the kernel {kernel}, which takes 1 to {max}")]
    Threads {
        /// The kernel.
        kernel: String,
        /// Threads of a block.
        threads: u32,
        /// Most threads of a block.
        max: u32,
    },
    /// A grid without blocks, or with more than a device takes.
    #[error("a grid of {blocks} blocks; a grid has 1 to {max}")]
    Blocks {
        /// Blocks of the grid.
        blocks: u32,
        /// Most blocks of a grid.
        max: u32,
    },
    /// More shared memory than a block may have.
    #[error("{bytes} bytes of shared memory for a block; at most {max}")]
    SharedBytes {
        /// Bytes, those that the text declares included.
        bytes: u64,
        /// Most bytes.
        max: u64,
    },
    /// A fault of a thread.
    #[error(transparent)]
    Fault(#[from] PtxFault),
}

/// A fault of a thread, which ends the launch. Stores before it have happened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line} of the PTX text, kernel {kernel}, block {block}, thread {thread}: {kind}")]
pub struct PtxFault {
    /// The kernel.
    pub kernel: String,
    /// The line of the instruction, from 1.
    pub line: u32,
    /// The block in its grid.
    pub block: u32,
    /// The thread in its block.
    pub thread: u32,
    /// The fault.
    pub kind: PtxFaultKind,
}

/// The kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PtxFaultKind {
    /// An access that the memory refuses.
    #[error(
        "{access} of {bytes} bytes at {address:#x}, which the memory does not have or does not let it {access}"
    )]
    Refused {
        /// `load` or `store`.
        access: &'static str,
        /// The first byte.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
    },
    /// An access outside the parameters or the shared memory.
    #[error("{access} of {bytes} bytes at {address:#x}, which is outside the {space}")]
    Outside {
        /// `load` or `store`.
        access: &'static str,
        /// The first byte.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
        /// The memory.
        space: &'static str,
    },
    /// An address that is no multiple of the bytes of the access.
    #[error("{access} of {bytes} bytes at {address:#x}, which is no multiple of them")]
    Misaligned {
        /// `load` or `store`.
        access: &'static str,
        /// The first byte.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
    },
    /// A register that no instruction has written.
    #[error("reads the register {register}, which nothing has written")]
    UnwrittenRegister {
        /// The register.
        register: String,
    },
    /// A byte of shared memory that no thread has written.
    #[error("reads byte {offset} of the shared memory, which nothing has written")]
    UnwrittenShared {
        /// The byte.
        offset: u64,
    },
    /// A byte of shared memory that two threads use without a barrier between them, at least one of them writing.
    #[error(
        "{access} of byte {offset} of the shared memory, which thread {other} uses without a barrier in between"
    )]
    SharedRace {
        /// `load` or `store`.
        access: &'static str,
        /// The byte.
        offset: u64,
        /// The other thread.
        other: u32,
    },
    /// A barrier that other threads of the block have passed by.
    #[error(
        "waits at a barrier of which {ended} threads of the block cannot come, because they have ended"
    )]
    EndedThreads {
        /// Threads that have ended.
        ended: u32,
    },
    /// Two barriers at one time.
    #[error("waits at a barrier, and thread {other} waits at the barrier of line {line}")]
    TwoBarriers {
        /// The other thread.
        other: u32,
        /// The line of its barrier.
        line: u32,
    },
    /// A division by zero, whose result PTX leaves open.
    #[error("divides by zero")]
    DivisionByZero,
    /// More instructions than the launch may execute: a loop without end, most likely.
    #[error("the launch has executed {max} instructions, the most that it may")]
    Endless {
        /// Instructions of the launch.
        max: u64,
    },
    /// More accesses of a warp between two barriers than are kept for counting.
    #[error("the warp has made {max} accesses between two barriers, the most that are counted")]
    ManyAccesses {
        /// The most accesses.
        max: usize,
    },
    /// The end of the instructions without `ret`.
    #[error("passes the last instruction")]
    NoReturn,
}
