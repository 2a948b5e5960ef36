//! Grows a draft from the slowest item on.

use kvtile_layout::{Axis, Shape};

use super::{NodeRule, WordNode};
use crate::generate::choices::Choices;

/// The items of a word that is a layout of `shape`, without stride rules.
pub(super) fn draft(choices: &mut Choices, shape: &Shape) -> Vec<WordNode> {
    let mut draft = WordDraft { choices, shape };
    let all: Vec<usize> = (0..shape.planes().len()).collect();
    let todos = draft.todos(&all);
    let bar = match draft.choices.once_in(2) {
        true => BarState::Must,
        false => BarState::Done,
    };
    draft.grow(&all, todos, bar, PlaneNaming::Free)
}

/// The state of the bar at a point of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BarState {
    /// The bar was set, or the word has none.
    Done,
    /// The caller sets the bar further right.
    Later,
    /// The bar must be set here.
    Must,
}

/// Whether a part must or must not name its planes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PlaneNaming {
    Free,
    Named,
    Unnamed,
}

/// An axis with the digits that remain to be set.
#[derive(Clone)]
struct AxisTodo {
    axis: Axis,
    moduli: Vec<Option<u64>>,
    touched: bool,
    /// The slowest digit is set with this many values, for planes of different extents: each part
    /// must still set the faster digits.
    shared_values: Option<u64>,
}

struct WordDraft<'a> {
    choices: &'a mut Choices,
    shape: &'a Shape,
}

impl WordDraft<'_> {
    fn extents(&self, set: &[usize], axis: Axis) -> Vec<u64> {
        set.iter()
            .filter_map(|&i| self.shape.planes().get(i))
            .map(|plane| self.shape.extent(plane, axis))
            .collect()
    }

    /// The axes of a set of planes, each split into digits, and sometimes axes of extent 1.
    fn todos(&mut self, set: &[usize]) -> Vec<AxisTodo> {
        let standard = [Axis::B, Axis::L, Axis::N, Axis::H, Axis::C];
        let declared = ['D', 'W'].into_iter().filter_map(Axis::new);
        let mut todos = Vec::new();
        for axis in standard.into_iter().chain(declared) {
            let needed = self.extents(set, axis).iter().any(|&extent| extent > 1);
            if self.shape.knows(axis) && (needed || !self.choices.once_in(3)) {
                todos.push(AxisTodo {
                    axis,
                    moduli: self.moduli(set, axis),
                    touched: false,
                    shared_values: None,
                });
            }
        }
        todos
    }

    /// Moduli that divide each other and every extent of `axis` in `set` other than 1.
    fn moduli(&mut self, set: &[usize], axis: Axis) -> Vec<Option<u64>> {
        let mut extents = self.extents(set, axis);
        extents.retain(|&extent| extent > 1);
        let Some(&first) = extents.first() else {
            return vec![None];
        };
        let common = extents.iter().fold(first, |a, &b| gcd(a, b));
        let mut moduli = Vec::new();
        let mut low = 1;
        while self.choices.once_in(3) {
            let next: Vec<u64> = (low + 1..=common)
                .filter(|m| m.is_multiple_of(low) && common.is_multiple_of(*m))
                .collect();
            if next.is_empty() {
                break;
            }
            low = self.choices.pick(&next);
            moduli.push(Some(low));
        }
        let complete = extents.iter().all(|&extent| extent == low);
        if !complete || self.choices.once_in(2) {
            moduli.insert(0, None);
        }
        moduli
    }

    fn grow(
        &mut self,
        set: &[usize],
        mut todos: Vec<AxisTodo>,
        mut bar: BarState,
        naming: PlaneNaming,
    ) -> Vec<WordNode> {
        let mut nodes = Vec::new();
        let mut separated = set.len() == 1;
        loop {
            let ready: Vec<usize> = (0..todos.len())
                .filter(|&i| self.can_set(set, separated, todos.get(i)))
                .collect();
            if bar == BarState::Must && (self.choices.once_in(4) || (ready.is_empty() && separated))
            {
                nodes.push(WordNode::Bar);
                bar = BarState::Done;
            } else if let Some(node) = self.shared_digit(set, &mut todos, bar, naming) {
                nodes.push(node);
            } else if !separated && (ready.is_empty() || self.choices.once_in(4)) {
                let by_plane = match naming {
                    _ if todos.iter().any(|t| t.shared_values.is_some()) => false,
                    PlaneNaming::Free => !self.choices.once_in(2),
                    PlaneNaming::Named => false,
                    PlaneNaming::Unnamed => true,
                };
                if !by_plane {
                    nodes.extend(self.sum(set, todos, bar, naming));
                    return nodes;
                }
                nodes.push(axis_node(Axis::K, None, bar));
                separated = true;
            } else if let Some(&at) = ready.get(self.choices.index(ready.len())) {
                nodes.extend(self.digit(&mut todos, at, bar));
            } else {
                break;
            }
        }
        self.name(set, naming, &mut nodes);
        nodes
    }

    /// Sometimes sets the slowest digit of an axis along which the planes of `set` differ, with the
    /// same number of values for all of them: the first C of `C(s,kC32)`.
    fn shared_digit(
        &mut self,
        set: &[usize],
        todos: &mut [AxisTodo],
        bar: BarState,
        naming: PlaneNaming,
    ) -> Option<WordNode> {
        if set.len() < 2 || naming == PlaneNaming::Unnamed {
            return None;
        }
        let at = self.choices.index(todos.len());
        let todo = todos.get_mut(at)?;
        let extents = self.extents(set, todo.axis);
        let first = *extents.first()?;
        let common = extents.iter().fold(first, |a, &b| gcd(a, b));
        let alike = extents.iter().all(|&extent| extent == first);
        if todo.touched || alike || common == 1 || !self.choices.once_in(2) {
            return None;
        }
        todo.touched = true;
        todo.moduli.clear();
        todo.shared_values = Some(common);
        Some(axis_node(todo.axis, None, bar))
    }

    /// Whether every plane of `set` has the same digits of this axis, so that one item serves all.
    fn can_set(&self, set: &[usize], separated: bool, todo: Option<&AxisTodo>) -> bool {
        todo.is_some_and(|todo| {
            let extents = self.extents(set, todo.axis);
            let alike = extents.windows(2).all(|pair| match pair {
                [a, b] => a == b,
                _ => true,
            });
            !todo.moduli.is_empty() && (separated || alike)
        })
    }

    fn digit(&mut self, todos: &mut [AxisTodo], at: usize, bar: BarState) -> Option<WordNode> {
        let todo = todos.get_mut(at)?;
        let digit = self.choices.index(todo.moduli.len());
        todo.touched = true;
        let modulus = todo.moduli.remove(digit);
        Some(axis_node(todo.axis, modulus, bar))
    }

    /// Inserts the name of a single plane at a random position of its part.
    fn name(&mut self, set: &[usize], naming: PlaneNaming, nodes: &mut Vec<WordNode>) {
        let named = match naming {
            PlaneNaming::Named => true,
            PlaneNaming::Free => set.len() == 1 && self.choices.once_in(4),
            PlaneNaming::Unnamed => false,
        };
        if let ([plane], true) = (set, named) {
            if let Some(plane) = self.shape.planes().get(*plane) {
                let at = self.choices.index(nodes.len() + 1);
                nodes.insert(at, WordNode::Plane(plane.name().to_string()));
            }
        } else if nodes.is_empty() {
            nodes.push(axis_node(Axis::K, None, BarState::Later));
        }
    }

    /// A sum over parts of `set`, and the items after it.
    fn sum(
        &mut self,
        set: &[usize],
        todos: Vec<AxisTodo>,
        bar: BarState,
        naming: PlaneNaming,
    ) -> Vec<WordNode> {
        let (tail_todos, part_todos): (Vec<AxisTodo>, Vec<AxisTodo>) = todos
            .into_iter()
            .partition(|todo| todo.shared_values.is_none() && self.choices.once_in(3));
        let bar_in_tail = bar == BarState::Must && self.choices.once_in(2);
        let (part_bar, tail_bar) = match bar {
            BarState::Must if bar_in_tail => (BarState::Later, BarState::Later),
            BarState::Must => (BarState::Must, BarState::Done),
            other => (other, other),
        };
        let mut parts = Vec::new();
        let shared = part_todos.iter().any(|todo| todo.shared_values.is_some());
        let mut may_be_unnamed = naming == PlaneNaming::Free && !shared;
        for planes in self.partition(set) {
            let naming = match may_be_unnamed && self.choices.once_in(3) {
                true => PlaneNaming::Unnamed,
                false => PlaneNaming::Named,
            };
            may_be_unnamed &= naming == PlaneNaming::Named;
            let todos = self.part_todos(&planes, &part_todos);
            parts.push(self.grow(&planes, todos, part_bar, naming));
        }
        let mut nodes = vec![WordNode::Sum(parts)];
        nodes.extend(self.tail(tail_todos, tail_bar, bar_in_tail));
        nodes
    }

    /// Splits `set` into at least two parts.
    fn partition(&mut self, set: &[usize]) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        for plane in self.choices.shuffled(set.to_vec()) {
            let joins = parts.len() >= 2 && self.choices.once_in(2);
            let at = self.choices.index(parts.len());
            match parts.get_mut(at) {
                Some(part) if joins => part.push(plane),
                _ => parts.push(vec![plane]),
            }
        }
        parts
    }

    /// Axes without a set digit may be split differently in each part, or omitted if they have one
    /// entry.
    fn part_todos(&mut self, planes: &[usize], todos: &[AxisTodo]) -> Vec<AxisTodo> {
        let mut mine = Vec::new();
        for todo in todos {
            let mut todo = todo.clone();
            if let Some(values) = todo.shared_values {
                let extents = self.extents(planes, todo.axis);
                let first = extents.first().copied().unwrap_or(values);
                if extents.iter().all(|&extent| extent == first) {
                    todo.moduli = vec![Some(first / values)];
                    todo.moduli.retain(|&modulus| modulus != Some(1));
                    todo.shared_values = None;
                }
            } else if !todo.touched {
                let one = self.extents(planes, todo.axis).iter().all(|&e| e == 1);
                if one && self.choices.once_in(2) {
                    continue;
                }
                if self.choices.once_in(2) {
                    todo.moduli = self.moduli(planes, todo.axis);
                }
            }
            mine.push(todo);
        }
        mine
    }

    fn tail(&mut self, todos: Vec<AxisTodo>, bar: BarState, sets_bar: bool) -> Vec<WordNode> {
        let digits = todos
            .into_iter()
            .flat_map(|todo| todo.moduli.into_iter().map(move |m| (todo.axis, m)))
            .collect();
        let digits = self.choices.shuffled(digits);
        let bar_at = match sets_bar {
            true => self.choices.index(digits.len() + 1),
            false => usize::MAX,
        };
        let mut nodes = Vec::new();
        for (i, (axis, modulus)) in digits.iter().enumerate() {
            let bar = match i >= bar_at {
                true => BarState::Done,
                false => bar,
            };
            nodes.push(axis_node(*axis, *modulus, bar));
        }
        if sets_bar {
            nodes.insert(bar_at.min(nodes.len()), WordNode::Bar);
        }
        nodes
    }
}

fn axis_node(axis: Axis, modulus: Option<u64>, bar: BarState) -> WordNode {
    WordNode::Axis {
        axis,
        modulus,
        rule: NodeRule::None,
        in_bytes: bar == BarState::Done,
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}
