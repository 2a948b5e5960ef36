//! What the interpreter finds: wrong kernels, texts that are no PTX, and damaged texts of the kernels that ship.
#![expect(clippy::panic, clippy::indexing_slicing, reason = "tests")]

use kvtile_ptx::{
    PtxFault, PtxFaultKind, PtxLaunch, PtxLaunchError, PtxModule, PtxRanges, PtxReport,
    PtxTextError,
};
use kvtile_random::SplitMix64;

const READABLE: u64 = 0x1000;
const WRITABLE: u64 = 0x2000;

/// A text whose only kernel has this body.
fn text(body: &str) -> String {
    format!(
        ".version 7.4\n.target sm_80\n.address_size 64\n.visible .shared .align 16 .b8 room[64];\n\
         .visible .entry k(.param .u64 from, .param .u64 to)\n.maxntid 64, 1, 1\n{{\n\
         .reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<8>; .reg .b64 %rd<8>;\n\
         ld.param.u64 %rd0, [from]; ld.param.u64 %rd1, [to]; mov.u32 %r0, %tid.x;\n{body}\n}}\n"
    )
}

/// Runs two blocks of `threads` threads over 64 readable and 64 writable bytes.
fn run(body: &str, threads: u32) -> (Result<PtxReport, PtxLaunchError>, PtxRanges) {
    let module = PtxModule::parse(&text(body)).unwrap_or_else(|error| panic!("{error}\n{body}"));
    let mut memory = PtxRanges::new()
        .readable(READABLE, (0..64).collect())
        .writable(WRITABLE, vec![0; 64]);
    let parameters = [READABLE.to_le_bytes(), WRITABLE.to_le_bytes()].concat();
    let launch = PtxLaunch {
        kernel: "k",
        blocks: 2,
        threads,
        shared_bytes: 0,
        parameters: &parameters,
        instructions_max: 10_000,
    };
    (module.launch(&launch, &mut memory), memory)
}

fn fault(body: &str, threads: u32) -> PtxFault {
    match run(body, threads).0 {
        Err(PtxLaunchError::Fault(fault)) => fault,
        other => panic!("{other:?}\n{body}"),
    }
}

fn kind(body: &str) -> PtxFaultKind {
    fault(body, 4).kind
}

#[test]
fn a_kernel_copies_with_every_kind_of_access() {
    // Four bytes a thread, through shared memory to the neighbour's place; the second block does the same again.
    let body = "
        mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; ld.global.nc.u32 %r1, [%rd3];
        mov.u64 %rd4, room; add.s64 %rd5, %rd4, %rd2; st.shared.u32 [%rd5], %r1;
        bar.sync 0;
        xor.b32 %r2, %r0, 1; mul.wide.u32 %rd2, %r2, 4; add.s64 %rd5, %rd4, %rd2;
        ld.shared.v2.u16 {%rs0, %rs1}, [%rd5];
        mov.b32 %r3, {%rs0, %rs1};
        setp.lt.u32 %p0, %r0, 8; @!%p0 bra $done;
        mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd1, %rd2; st.global.cg.u32 [%rd3], %r3;
        $done: ret;";
    let (report, memory) = run(body, 16);
    let counts = report.unwrap().counts;
    let expected: Vec<u8> = (0..64).map(|i| if i < 32 { i ^ 4 } else { 0 }).collect();
    assert_eq!(memory.bytes(WRITABLE).unwrap(), expected);
    assert_eq!(memory.written_twice(), Some(WRITABLE));
    assert_eq!(memory.written_bytes(), 32);
    // Of 24 instructions, 16 threads of two blocks skip three or none.
    assert_eq!(counts.instructions, 2 * (16 * 18 + 8 * 3));
    assert_eq!(
        (counts.constant_loads.sectors, counts.stores.sectors),
        (4, 2)
    );
    assert_eq!((counts.shared.passes, counts.shared.passes_ideal), (4, 4));
}

#[test]
fn accesses_outside_of_memory_are_faults_with_their_place() {
    let found = fault(
        "add.s64 %rd2, %rd0, 64;\nld.global.u32 %r1, [%rd2]; ret;",
        4,
    );
    let expected = "line 11 of the PTX text, kernel k, block 0, thread 0: load of 4 bytes at 0x1040, which the memory \
                    does not have or does not let it load";
    assert_eq!(found.to_string(), expected);
    for (body, access) in [
        ("st.global.u32 [%rd0], 1; ret;", "store"),
        ("ld.global.u32 %r1, [%rd1+4096]; ret;", "load"),
        ("ld.global.u64 %rd2, [16]; ret;", "load"),
    ] {
        let found = kind(body);
        assert!(
            matches!(&found, PtxFaultKind::Refused { access: a, .. } if *a == access),
            "{found}"
        );
    }
    for body in [
        "mov.u64 %rd2, room; ld.shared.u32 %r1, [%rd2+64]; ret;",
        "st.shared.u32 [%rd0], 1; ret;",
        "ld.param.u64 %rd2, [from+16]; ret;",
        "mov.u64 %rd2, room; ld.param.u64 %rd2, [%rd2]; ret;",
    ] {
        assert!(matches!(kind(body), PtxFaultKind::Outside { .. }), "{body}");
    }
    for body in [
        "ld.global.v2.u32 {%r1, %r2}, [%rd0+4]; ret;",
        "st.global.u16 [%rd1+1], 7; ret;",
        "mov.u64 %rd2, room; st.shared.u32 [%rd2+2], 1; ret;",
    ] {
        assert!(
            matches!(kind(body), PtxFaultKind::Misaligned { .. }),
            "{body}"
        );
    }
}

#[test]
fn values_that_nothing_has_written_are_faults() {
    let register = |register: &str| PtxFaultKind::UnwrittenRegister {
        register: register.to_owned(),
    };
    assert_eq!(kind("add.s32 %r1, %r2, 1; ret;"), register("%r2"));
    assert_eq!(kind("@%p3 bra $L; $L: ret;"), register("%p3"));
    assert_eq!(kind("st.global.u32 [%rd1], %r7; ret;"), register("%r7"));
    // The shared memory of a block does not reach the next one.
    let body = "mov.u64 %rd2, room; mov.u32 %r1, %ctaid.x; setp.eq.s32 %p0, %r1, 0;
        @%p0 st.shared.u8 [%rd2+5], 1; ld.shared.u8 %rs1, [%rd2+5]; ret;";
    let found = fault(body, 1);
    assert_eq!(
        (found.block, found.kind),
        (1, PtxFaultKind::UnwrittenShared { offset: 5 })
    );
    assert_eq!(
        kind("div.u32 %r1, %r0, 0; ret;"),
        PtxFaultKind::DivisionByZero
    );
}

#[test]
fn shared_memory_without_a_barrier_is_a_fault() {
    let body = "mov.u64 %rd2, room; st.shared.u32 [%rd2], %r0; ret;";
    let race = |access, other| PtxFaultKind::SharedRace {
        access,
        offset: 0,
        other,
    };
    assert_eq!(kind(body), race("store", 0));
    let body = "mov.u64 %rd2, room; setp.eq.s32 %p0, %r0, 0; @%p0 st.shared.u32 [%rd2], 1;
        ld.shared.u32 %r1, [%rd2]; ret;";
    assert_eq!(kind(body), race("load", 0));
    let body =
        "mov.u64 %rd2, room; setp.eq.s32 %p0, %r0, 0; @%p0 st.shared.u32 [%rd2], 1; bar.sync 0;
        ld.shared.u32 %r1, [%rd2]; setp.eq.s32 %p0, %r0, 3; @%p0 st.shared.u32 [%rd2], 1; ret;";
    assert!(matches!(
        kind(body),
        PtxFaultKind::SharedRace {
            access: "store",
            ..
        }
    ));
}

#[test]
fn barriers_that_threads_do_not_reach_are_faults() {
    let body = "setp.eq.s32 %p0, %r0, 2; @%p0 ret; bar.sync 0; ret;";
    let found = fault(body, 4);
    assert_eq!(
        (found.thread, found.kind),
        (0, PtxFaultKind::EndedThreads { ended: 1 })
    );
    let body = "setp.eq.s32 %p0, %r0, 2; @%p0 bra $B; bar.sync 0; ret;\n$B: bar.sync 0; ret;";
    assert_eq!(kind(body), PtxFaultKind::TwoBarriers { other: 2, line: 11 });
    assert_eq!(
        kind("$L: bra.uni $L;"),
        PtxFaultKind::Endless { max: 10_000 }
    );
    assert_eq!(
        kind("$L: bar.sync 0; bra $L;"),
        PtxFaultKind::Endless { max: 10_000 }
    );
    assert_eq!(kind("add.s32 %r1, %r0, 1;"), PtxFaultKind::NoReturn);
}

#[test]
fn launches_that_the_kernel_does_not_take_are_refused() {
    let module = PtxModule::parse(&text("ret;")).unwrap();
    let refused = |change: fn(&mut PtxLaunch<'_>)| {
        let mut launch = PtxLaunch {
            kernel: "k",
            blocks: 1,
            threads: 64,
            shared_bytes: 0,
            parameters: &[0; 16],
            instructions_max: 1000,
        };
        change(&mut launch);
        module
            .launch(&launch, &mut PtxRanges::new())
            .map_err(|error| error.to_string())
    };
    assert!(refused(|_| ()).is_ok());
    for (change, expected) in [
        (
            (|l| l.kernel = "q") as fn(&mut PtxLaunch<'_>),
            "no kernel \"q\"; the text has k",
        ),
        (
            |l| l.threads = 65,
            "blocks of 65 threads for the kernel k, which takes 1 to 64",
        ),
        (
            |l| l.threads = 0,
            "blocks of 0 threads for the kernel k, which takes 1 to 64",
        ),
        (
            |l| l.blocks = 0,
            "a grid of 0 blocks; a grid has 1 to 2147483647",
        ),
        (
            |l| l.parameters = &[0; 15],
            "15 bytes of parameters for the kernel k, which takes 16",
        ),
        (
            |l| l.shared_bytes = 227 << 10,
            "232512 bytes of shared memory for a block; at most 232448",
        ),
    ] {
        assert_eq!(refused(change).unwrap_err(), expected);
    }
}

#[test]
fn texts_are_refused_with_line_and_reason() {
    for (body, expected) in [
        (
            "shfl.sync.b32 %r1, %r0, 1;",
            "line 10 of the PTX text: the interpreter does not have the instruction \"shfl.sync.b32\"",
        ),
        (
            "\nadd.f32 %r1, %r0, 1;",
            "line 11 of the PTX text: the interpreter does not have the instruction \"add.f32\"",
        ),
        (
            "add.s32 %r8, %r0, 1;",
            "line 10 of the PTX text: \"%r8\" is not declared",
        ),
        (
            "bra $gone;",
            "line 10 of the PTX text: \"$gone\" is not declared",
        ),
        (
            "add.s32 %rd2, %r0, 1;",
            "line 10 of the PTX text: \"add.s32\" of a register of 64 bits",
        ),
        (
            "add.s32 %r1, %r0 1;",
            "line 10 of the PTX text: \"1\" in place of ,",
        ),
        (
            "$a: $a: ret;",
            "line 10 of the PTX text: \"$a\" is declared twice",
        ),
        (
            ".reg .b32 %x<9000>;",
            "line 10 of the PTX text: registers of 9000; at most 8192",
        ),
        (
            "ld.global.v4.u64 {%rd1}, [%rd0];",
            "line 10 of the PTX text: the interpreter does not have the instruction \"ld.global.v4.u64\"",
        ),
        (
            "bar.sync 1;",
            "line 10 of the PTX text: \"1\" in place of barrier 0",
        ),
        (
            "@%r0 ret;",
            "line 10 of the PTX text: \"%r0\" in place of a predicate",
        ),
    ] {
        assert_eq!(
            PtxModule::parse(&text(body)).unwrap_err().to_string(),
            expected
        );
    }
    let long = " ".repeat(kvtile_ptx::TEXT_BYTES_MAX + 1);
    assert!(matches!(
        PtxModule::parse(&long),
        Err(PtxTextError::TooLong { .. })
    ));
    for text in [
        "",
        ".version 7",
        ".version 7.4 .target sm_80 .address_size 32",
        "\u{0}\u{fc}",
    ] {
        assert!(
            matches!(PtxModule::parse(text), Err(PtxTextError::Unexpected { .. })),
            "{text:?}"
        );
    }
}

/// Damages a text in some lines.
fn damaged(text: &str, numbers: &mut SplitMix64) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..=numbers.below(3) {
        let (at, other) = (numbers.index(lines.len()), numbers.index(lines.len()));
        let mut line: Vec<char> = lines[at].chars().collect();
        let place = numbers.index(line.len());
        match numbers.below(5) {
            0 => drop(lines.remove(at)),
            1 => lines.swap(at, other),
            2 if !line.is_empty() => drop(line.remove(place)),
            3 => line.insert(
                place,
                ['0', '9', '%', 'r', '[', '-', ';', '{'][numbers.index(8)],
            ),
            _ => lines.truncate(at.max(1)),
        }
        if let Some(kept) = lines.get_mut(at) {
            *kept = line.into_iter().collect();
        }
    }
    lines.join("\n")
}

/// No damage makes the interpreter panic, run for ever or write where it may not.
#[test]
fn damaged_texts_end_in_errors_or_in_launches_that_end() {
    let shipped = include_str!("../../kvtile-kernels/cuda/move.ptx");
    let mut numbers = SplitMix64::new(11);
    let (mut parsed, mut ended, mut faulted) = (0, 0, 0);
    for _ in 0..150 {
        let Ok(module) = PtxModule::parse(&damaged(shipped, &mut numbers)) else {
            continue;
        };
        parsed += 1;
        for kernel in module.kernels() {
            let mut parameters = vec![0; kernel.parameter_bytes()];
            for byte in &mut parameters {
                *byte = u8::try_from(numbers.below(3)).unwrap();
            }
            let launch = PtxLaunch {
                kernel: kernel.name(),
                blocks: 1,
                threads: kernel.threads_max().min(33),
                shared_bytes: 0,
                parameters: &parameters,
                instructions_max: 5_000,
            };
            match module.launch(&launch, &mut PtxRanges::new()) {
                Ok(_) => ended += 1,
                Err(_) => faulted += 1,
            }
        }
    }
    assert!(parsed > 15 && faulted > 50, "{parsed} {ended} {faulted}");
}
