//! Colours: how a ratio stands to its goal.

use crate::row::Row;

/// One step of the scale: from which part of the goal on, the class of the style sheet, and what
/// the legend says.
struct Step {
    from: f64,
    class: &'static str,
    says: &'static str,
}

/// Red misses the goal, blue reaches it; the two can be told apart without seeing red and green.
const STEPS: [Step; 7] = [
    Step {
        from: 1.25,
        class: "g6",
        says: "beyond it by a quarter",
    },
    Step {
        from: 1.05,
        class: "g5",
        says: "beyond the goal",
    },
    Step {
        from: 1.0,
        class: "g4",
        says: "reaches the goal",
    },
    Step {
        from: 0.95,
        class: "g3",
        says: "less than 5 % short",
    },
    Step {
        from: 0.8,
        class: "g2",
        says: "less than 20 % short",
    },
    Step {
        from: 0.5,
        class: "g1",
        says: "less than half short",
    },
    Step {
        from: f64::NEG_INFINITY,
        class: "g0",
        says: "less than half of the goal",
    },
];

/// The class of a cell.
pub(super) fn class(row: &Row) -> &'static str {
    let Some((reached, goal)) = row.against_goal() else {
        return "plain";
    };
    let step = STEPS.iter().find(|step| reached / goal >= step.from);
    step.map_or("plain", |step| step.class)
}

/// What the colours mean.
pub(super) fn legend() -> String {
    let step = |step: &Step| format!("<span><i class=\"{}\"></i>{}</span>", step.class, step.says);
    let steps: String = STEPS.iter().rev().map(step).collect();
    format!(
        "<div class=\"legend\">{steps}<span><i style=\"background:var(--none)\"></i>no goal was \
         set</span></div>"
    )
}
