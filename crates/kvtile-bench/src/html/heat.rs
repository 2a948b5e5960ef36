//! Colours: one scale for the ratio of a copy's speed to that of one flat `memcpy`.

use crate::row::BenchRow;

/// One step of the scale: the lowest ratio, the class of the style sheet, and the text of the legend.
struct HeatStep {
    from: f64,
    class: &'static str,
    label: &'static str,
}

/// The stronger the colour, the faster the copy. Steps differ in lightness, not in hue alone.
const STEPS: [HeatStep; 7] = [
    HeatStep {
        from: 1.5,
        class: "g6",
        label: "1.5 and more",
    },
    HeatStep {
        from: 1.1,
        class: "g5",
        label: "1.1 to 1.5",
    },
    HeatStep {
        from: 0.9,
        class: "g4",
        label: "0.9 to 1.1: as fast as memcpy",
    },
    HeatStep {
        from: 0.75,
        class: "g3",
        label: "0.75 to 0.9",
    },
    HeatStep {
        from: 0.5,
        class: "g2",
        label: "0.5 to 0.75",
    },
    HeatStep {
        from: 0.25,
        class: "g1",
        label: "0.25 to 0.5",
    },
    HeatStep {
        from: f64::NEG_INFINITY,
        class: "g0",
        label: "below 0.25",
    },
];

/// The class of a cell in the style sheet.
pub(super) fn class(row: &BenchRow) -> &'static str {
    let step = STEPS.iter().find(|step| row.ratio >= step.from);
    step.map_or("plain", |step| step.class)
}

/// The legend of the scale.
pub(super) fn legend() -> String {
    let step = |step: &HeatStep| {
        format!(
            "<span><i class=\"{}\"></i>{}</span>",
            step.class, step.label
        )
    };
    let steps: String = STEPS.iter().rev().map(step).collect();
    format!("<div class=\"legend\"><b>× memcpy</b>{steps}</div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_lower_than_the_one_before_and_has_its_own_class() {
        assert!(STEPS.is_sorted_by(|a, b| a.from > b.from && a.class > b.class));
        let legend = legend();
        for step in STEPS {
            assert!(legend.contains(step.label), "{}", step.label);
        }
    }
}
