//! `docs/sidecar.md` has every counter, and every answer with its status and text.

use lb_sidecar::{
    framing::Violation,
    outcome::{Outcome, Reason},
    pool::Sticky,
    splice::Refusal,
};

#[test]
fn every_counter_is_in_the_reference() {
    let page = include_str!("../../docs/sidecar.md");
    let outcomes = Outcome::ALL.iter().map(|it| Reason::Outcome(*it));
    let violations = Violation::ALL.iter().map(|it| Reason::Violation(*it));
    for reason in outcomes.chain(violations) {
        let row = format!("| `{}` |", reason.label());
        assert!(page.contains(&row), "{row} is missing");
    }
    for outcome in Outcome::ALL {
        if let Some((status, text)) = outcome.answer() {
            let row = format!("| `{}` | {} | {text} |", outcome.label(), status.as_u16());
            assert!(page.contains(&row), "{row} is missing");
        }
    }
}

#[test]
fn every_reason_to_go_on_relaying_is_in_the_reference() {
    let page = include_str!("../../docs/sidecar.md");
    for refusal in Refusal::ALL {
        let row =
            page.lines().find(|it| it.starts_with(&format!("| `splice_{}` |", refusal.label())));
        let row = row.unwrap_or_else(|| panic!("{refusal:?} is missing"));
        assert_eq!(row.contains("tried again"), refusal.is_passing(), "{row}");
    }
}

#[test]
fn every_reason_of_a_pick_is_in_the_rules() {
    let page = include_str!("../../docs/affinity.md");
    for sticky in Sticky::ALL.iter().filter(|it| **it != Sticky::Off) {
        assert!(page.contains(&format!("`{}`", sticky.label())), "{} is missing", sticky.label());
    }
}
