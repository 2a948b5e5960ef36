//! Plan once, bind many: the part of a plan between two layouts that does not depend on blocks.

use std::{collections::HashMap, sync::Arc};

use super::{
    BlockPair, CopyPlan, LayerPlans, PlanClass, PlanSettings, RangePair, Selection,
    build::{BuiltNests, NestBuilder, NestKey},
    check::SeenBlocks,
    frame::PlanFrame,
    map::MapKind,
    pairs::{PairClass, PairClasses},
};
use crate::{broken::broken, error::LayoutError, shape::checked, strided::StridedLayout};

/// Most classes whose nests a planner keeps: a progression of each length has its own nests.
const BUILT_MAX: usize = 256;

/// Plans copies of many block lists between two layouts.
///
/// [`CopyPlanner::new`] matches the planes and checks the ranges. The first list with a class of
/// pairs builds the nests of that class. After that, a plan costs the checks of its ids and its
/// list of bases. Planning takes `&mut self` because it reuses buffers: clone the planner, or put
/// it behind a lock, to plan on several threads. The plans are independent of the planner.
///
/// ```
/// use std::sync::Arc;
/// use kvtile_layout::{BlockPair, CopyPlanner, PlanSettings, Shape, StridedLayout, Unit};
///
/// let shape = Shape::key_value(8, 2, 16, 4, 64, Unit::raw(2)?)?;
/// let layout = |word: &str| -> Result<_, Box<dyn std::error::Error>> {
///     Ok(Arc::new(StridedLayout::resolve(&word.parse()?, &shape, 1)?))
/// };
/// let (engine, host) = (layout("L|KBNHC")?, layout("BLKNHC")?);
/// let mut planner = CopyPlanner::new(engine, host, PlanSettings::default())?;
/// for blocks in [[(0, 1), (1, 2)], [(4, 0), (2, 7)]] {
///     let pairs = blocks.map(|(from, to)| BlockPair::whole(from, to, 16));
///     assert_eq!(planner.plan(pairs)?.bytes(), 2 * shape.block_bytes()?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CopyPlanner {
    source: Arc<StridedLayout>,
    destination: Arc<StridedLayout>,
    frame: PlanFrame,
    bindings: PlanBindings,
}

impl CopyPlanner {
    /// Matches the planes of `source` and `destination` and checks the ranges of `settings`.
    ///
    /// # Errors
    /// Shapes whose planes differ; ranges outside their axes, empty, or missing where the shards
    /// differ; a destination in which units may overlap.
    pub fn new(
        source: Arc<StridedLayout>,
        destination: Arc<StridedLayout>,
        settings: PlanSettings,
    ) -> Result<CopyPlanner, LayoutError> {
        let frame = PlanFrame::new(&source, &destination, &settings)?;
        Ok(CopyPlanner {
            source,
            destination,
            frame,
            bindings: PlanBindings::default(),
        })
    }

    /// The layers that the planner's plans copy.
    #[must_use]
    pub fn layers(&self) -> RangePair {
        self.frame.layers
    }

    /// The plan of these pairs: [`CopyPlan::new`] with the same settings.
    ///
    /// # Errors
    /// No pairs; block ids or tokens out of range; a destination token written twice; a part of a
    /// plane that has no such axis; moduli without a common refinement.
    pub fn plan<I>(&mut self, pairs: I) -> Result<CopyPlan, LayoutError>
    where
        I: IntoIterator<Item = BlockPair>,
        I::IntoIter: ExactSizeIterator + Clone,
    {
        let builder = NestBuilder {
            frame: &self.frame,
            source: &self.source,
            destination: &self.destination,
        };
        self.bindings.bind(&builder, pairs.into_iter(), false)
    }

    /// The plans of these pairs, one for each layer. All share one planning pass and one check.
    ///
    /// # Errors
    /// As for [`CopyPlanner::plan`].
    pub fn plan_layers<I>(&mut self, pairs: I) -> Result<LayerPlans, LayoutError>
    where
        I: IntoIterator<Item = BlockPair>,
        I::IntoIter: ExactSizeIterator + Clone,
    {
        let builder = NestBuilder {
            frame: &self.frame,
            source: &self.source,
            destination: &self.destination,
        };
        let each = self.bindings.bind(&builder, pairs.into_iter(), true)?;
        let bytes = each.bytes.checked_mul(self.frame.layers.count);
        Ok(LayerPlans {
            bytes: checked(bytes, "bytes of a plan")?,
            layers: self.frame.layers,
            each,
        })
    }
}

impl CopyPlan {
    /// Plans the copy of `selection` from `source` to `destination`. It suits a single list of
    /// blocks; a [`CopyPlanner`] plans many.
    ///
    /// # Errors
    /// Shapes whose planes differ; ranges outside their axes, empty, or cutting what has no such
    /// axis; block ids out of range; a destination token written twice; nothing selected; moduli
    /// without a common refinement; a destination in which units may overlap.
    pub fn new(
        source: &StridedLayout,
        destination: &StridedLayout,
        selection: &Selection,
    ) -> Result<CopyPlan, LayoutError> {
        let frame = PlanFrame::new(source, destination, &selection.settings())?;
        let builder = NestBuilder {
            frame: &frame,
            source,
            destination,
        };
        let pairs = selection.pairs.iter().copied();
        PlanBindings::default().bind(&builder, pairs, false)
    }
}

/// State that one list of blocks leaves for the next.
#[derive(Clone, Debug, Default)]
struct PlanBindings {
    seen: SeenBlocks,
    classes: PairClasses,
    built: HashMap<NestKey, BuiltNests>,
    /// The class of the last lookup: most lists have the same one.
    last: Option<(NestKey, BuiltNests)>,
    nests: Vec<BuiltNests>,
}

impl PlanBindings {
    fn bind(
        &mut self,
        builder: &NestBuilder<'_>,
        pairs: impl ExactSizeIterator<Item = BlockPair> + Clone,
        layer: bool,
    ) -> Result<CopyPlan, LayoutError> {
        let frame = builder.frame;
        let wanted = pairs.len() as u64;
        self.seen.check(frame, pairs.clone())?;
        self.classes.group(frame, pairs);
        self.nests.clear();
        let (mut bytes, mut selected) = (0u64, 0u64);
        for index in 0..self.classes.len() {
            let Some(class) = self.classes.get(index) else {
                broken(format_args!(
                    "class {index} of {} classes",
                    self.classes.len()
                ))
            };
            let count = class.pairs.len() as u64;
            selected = selected.saturating_add(count.saturating_mul(class.key.blocks));
            let key = NestKey {
                class: class.key,
                kind: MapKind::new(class.token_bases, layer),
            };
            let built = self.built(builder, key)?;
            let all = built.bytes.checked_mul(count);
            let all = all.and_then(|all| bytes.checked_add(all));
            bytes = checked(all, "bytes of a plan")?;
            self.nests.push(built);
        }
        assert_eq!(
            (self.nests.len(), selected),
            (self.classes.len(), wanted),
            "classes with nests and pairs in them, and what was selected"
        );
        let classes = self.classes.drain().zip(self.nests.drain(..));
        Ok(CopyPlan {
            classes: classes.map(planned).collect(),
            maps: Arc::clone(&frame.maps),
            bytes,
        })
    }

    /// The nests of a class, cached or built.
    fn built(
        &mut self,
        builder: &NestBuilder<'_>,
        key: NestKey,
    ) -> Result<BuiltNests, LayoutError> {
        if let Some((last, built)) = &self.last
            && *last == key
        {
            return Ok(built.clone());
        }
        let built = match self.built.get(&key) {
            Some(built) => built.clone(),
            None => {
                let built = builder.build(&key)?;
                if self.built.len() >= BUILT_MAX {
                    self.built.clear();
                }
                self.built.insert(key, built.clone());
                built
            }
        };
        self.last = Some((key, built.clone()));
        Ok(built)
    }
}

fn planned((class, built): (PairClass, BuiltNests)) -> PlanClass {
    PlanClass {
        nests: built.nests,
        pairs: class.pairs,
        blocks_per_pair: class.key.blocks,
    }
}
