//! The goals that developers of kvtile set for each class of copies, in a part of the page that is folded.

use std::fmt::Write as _;

use super::escaped;
use crate::{class::CopyClass, contender::CopyMethod, report::BenchReport, row::BenchRow};

/// Classes that may have a goal.
const CLASSES: [CopyClass; 6] = [
    CopyClass::Contiguous,
    CopyClass::Rows,
    CopyClass::Pieces,
    CopyClass::ShortRows,
    CopyClass::Elements,
    CopyClass::File,
];

/// Goals by class, how many copies reach theirs, and which copy is furthest from it.
pub(super) fn section(report: &BenchReport) -> String {
    let mut section = "<details>\n<summary>Goals, for developers of kvtile</summary>\n<p>The smallest \
                       ratio to <code>memcpy</code> that a copy of a class should reach on this kind of \
                       machine; of files, the ratio to <code>fio</code>. They are targets for work on \
                       kvtile and no promise.</p>\n<div class=\"scroll\"><table>\n<thead><tr><th>class\
                       </th><th>1 thread</th><th>2 threads</th><th>in cache</th><th>reached</th>\
                       <th>furthest</th></tr></thead>\n<tbody>\n"
        .to_owned();
    for class in CLASSES {
        let goal = |threads, in_cache| match class.goal(4096, threads, in_cache) {
            Some(goal) => format!("{goal:.2}"),
            None => "–".to_owned(),
        };
        let (reached, furthest) = reached(report, class);
        // Writing to a string cannot fail.
        let _ = writeln!(
            section,
            "<tr><td class=\"left\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{reached}</td>\
             <td class=\"left\">{furthest}</td></tr>",
            class.title(),
            goal(1, false),
            goal(2, false),
            goal(1, true),
        );
    }
    section.push_str("</tbody>\n</table></div>\n</details>\n");
    section
}

/// How many copies of a class reach their goal, and which one is furthest from it.
fn reached(report: &BenchReport, class: CopyClass) -> (String, String) {
    let rows = report.rows.iter().filter(|row| row.class == class);
    let judged: Vec<(&BenchRow, f64)> = rows
        .filter(|row| row.method == CopyMethod::Kvtile)
        .filter_map(|row| row.against_goal().map(|(is, goal)| (row, is / goal)))
        .collect();
    let worst = judged.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let Some((row, part)) = worst else {
        return ("–".to_owned(), "–".to_owned());
    };
    let reached = judged.iter().filter(|(row, _)| !row.misses()).count();
    let furthest = format!(
        "{:.0} % of it: {}, {}",
        part * 100.0,
        escaped(&row.pair()),
        escaped(&row.model)
    );
    (format!("{reached} of {}", judged.len()), furthest)
}
