//! Copies blocks between two layouts: from vLLM's CPU backend, which has one region for each layer
//! and K transposed, to fully contiguous blocks.
//!
//! ```sh
//! cargo run -p kvtile --example copy_layouts
//! ```

use std::error::Error;

use kvtile::{
    CopyPlan, FillPattern, PhysicalLayout, Selection, Shape, TransferManager, TransferOptions,
    layout::RangePair,
};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    // 8 blocks of 16 tokens, 4 layers, 4 KV heads of 64 bf16 values.
    let shape = Shape::key_value(8, 4, 16, 4, 64, "bf16")?;
    let build = |word: &str| {
        let layout = PhysicalLayout::builder().with_shape(shape.clone());
        layout.layout(word).allocate_system().build()
    };
    let engine = build("L|BH(kCN,vNC)")?;
    let plain = build("BLKNHC")?;

    // A plan is arithmetic: it can be read before a byte moves.
    let blocks = Selection::blocks(&[0, 1], &[4, 5], shape.page_size())?;
    let plan = CopyPlan::new(engine.strided(), plain.strided(), &blocks)?;
    println!("{plan}\n");

    let manager = TransferManager::new();
    let (engine, plain) = (manager.register(engine)?, manager.register(plain)?);
    manager.fill(engine, &[0, 1], FillPattern::Distinct { seed: 1 })?;

    // Blocks 0 and 1 of the engine become blocks 4 and 5.
    let copy = manager.execute_transfer(engine, &[0, 1], plain, &[4, 5], TransferOptions::new())?;
    let report = copy.wait()?;
    println!("copied {} bytes", report.bytes);
    assert_eq!(report.bytes, 2 * shape.block_bytes()?);

    // A digest does not depend on the layout.
    for (from, to) in [(0, 4), (1, 5)] {
        let digests = (
            manager.block_digest(engine, from)?,
            manager.block_digest(plain, to)?,
        );
        assert_eq!(digests.0, digests.1);
    }

    // A part of a block: heads 2 and 3 of the first layer.
    let part = TransferOptions::new()
        .layers(RangePair::same(0, 1))
        .heads(RangePair::same(2, 2));
    let copy = manager.execute_transfer(engine, &[0], plain, &[7], part)?;
    assert_eq!(copy.wait()?.bytes, shape.block_bytes()? / 4 / 2);

    // What would overwrite itself is refused.
    let refused = manager.execute_transfer(plain, &[4], plain, &[4], TransferOptions::new());
    match refused.map(|_| ()) {
        Err(error) => println!("refused: {error}"),
        Ok(()) => return Err("a block was copied onto itself".into()),
    }
    Ok(())
}
