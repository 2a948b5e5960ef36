//! Classes: block pairs with the same relative placement, and their nests.

use std::{
    any::Any,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use super::{Nest, PairBase};

/// Block pairs with the same relative placement, and the nests that copy any one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanClass {
    /// The nests of one pair. Equal classes of one planner share them.
    pub nests: Arc<ClassNests>,
    /// The pairs.
    pub pairs: Vec<PairBase>,
    /// Number of consecutive block pairs that each entry of `pairs` represents.
    pub blocks_per_pair: u64,
}

/// The nests of a class, and a slot for the data that an executor derives from them. A planner
/// keeps both from one list of blocks to the next, so that neither is built twice.
pub struct ClassNests {
    nests: Box<[Nest]>,
    made: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl ClassNests {
    pub(super) fn new(nests: Vec<Nest>) -> ClassNests {
        ClassNests {
            nests: nests.into(),
            made: OnceLock::new(),
        }
    }

    /// The data that an executor derived from the nests, initially a default; `None` where the slot
    /// holds another type. Derived data must depend on the nests alone: plans of any blocks and
    /// layers share it.
    pub fn made<T: Default + Send + Sync + 'static>(&self) -> Option<&T> {
        let made = self.made.get_or_init(|| Box::new(T::default()));
        made.downcast_ref()
    }
}

impl Deref for ClassNests {
    type Target = [Nest];

    fn deref(&self) -> &[Nest] {
        &self.nests
    }
}

impl PartialEq for ClassNests {
    fn eq(&self, other: &ClassNests) -> bool {
        self.nests == other.nests
    }
}

impl Eq for ClassNests {}

impl fmt::Debug for ClassNests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nests.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_derived_from_nests_is_kept_with_them_and_has_one_type() {
        let nests = ClassNests::new(Vec::new());
        let first = nests.made::<OnceLock<u32>>().unwrap();
        assert_eq!(first.set(7), Ok(()));
        assert_eq!(nests.made::<OnceLock<u32>>().unwrap().get(), Some(&7));
        assert_eq!(nests.made::<u64>(), None);
        assert_eq!(nests, ClassNests::new(Vec::new()));
    }
}
