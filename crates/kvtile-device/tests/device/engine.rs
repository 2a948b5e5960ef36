//! A kernel that needs no interpreter: `increment(pointer, count)` adds 1 to `count` bytes, one a thread.

use kvtile_standin::kernel::{KernelEngine, KernelEntry, KernelFault, KernelLaunch, KernelMemory};

/// Text that names the kernel and the version; the engine below does not read its code.
pub(crate) const PTX: &str =
    ".version 7.4\n.target sm_80\n.visible .entry increment(.param .u64 p, .param .u32 n) {}\n";

/// Runs `increment`.
pub(crate) struct IncrementEngine;

/// The packed parameters.
pub(crate) fn parameters(address: u64, count: u32) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes
}

impl KernelEngine for IncrementEngine {
    fn entries(&self, ptx: &str) -> Result<Vec<KernelEntry>, String> {
        if !ptx.contains(".entry increment") {
            return Err("line 1: no kernel".to_owned());
        }
        Ok(vec![KernelEntry {
            name: "increment".to_owned(),
            parameters: vec![0..8, 8..12],
            shared_bytes: 0,
            threads_max: 1024,
        }])
    }

    fn launch(
        &self,
        launch: &KernelLaunch<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), KernelFault> {
        let word = |range| launch.parameters.get(range).unwrap_or_default();
        let address = u64::from_le_bytes(word(0..8).try_into().unwrap_or_default());
        let count = u32::from_le_bytes(word(8..12).try_into().unwrap_or_default());
        let threads = launch.grid[0] * launch.block[0];
        for thread in 0..threads.min(count) {
            let place = address + u64::from(thread);
            let mut byte = [0];
            let fault = |write| KernelFault::IllegalAddress {
                address: place,
                bytes: 1,
                write,
            };
            if !memory.read(place, &mut byte) {
                return Err(fault(false));
            }
            if !memory.write(place, &[byte[0].wrapping_add(1)]) {
                return Err(fault(true));
            }
        }
        Ok(())
    }
}
