//! A running agent takes a new configuration over, or refuses it as a whole. Needs root.

use std::time::Duration;

use tests::chat::Load;
use tests::edge::{EdgeConfig, Forward, Status};
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{CHAT, Plan};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);
const CHATS: usize = 40;

/// Both addresses of a backend are in the agent's status, or neither is.
fn has(status: &Status, backend: &str, wanted: bool) -> bool {
    [backend, &format!("{backend}-v6")].iter().all(|name| status.has(CHAT, name) == wanted)
}

fn without(config: &mut EdgeConfig, backend: &str) {
    config.service(CHAT).backends.retain(|it| !it.name.starts_with(backend));
}

fn weight(config: &mut EdgeConfig, backend: &str, weight: u32) {
    let backends = config.service(CHAT).backends.iter_mut();
    backends.filter(|it| it.name.starts_with(backend)).for_each(|it| it.weight = weight);
}

fn undisturbed(load: &Load) {
    let stats = load.wait_progress(3, LATER).unwrap();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
}

#[test]
fn a_saved_file_and_a_signal_are_taken_over() {
    require_root();
    let plan = Plan::new(Forward::Nat, seed("reload"));
    let mut site = plan.build_with(|config| without(config, "chat-3")).unwrap();
    let all = plan.config(&site.lab).service(CHAT).backends.clone();
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    undisturbed(&load);

    // Saved by renaming: a third backend.
    site.edge.configure(|config| config.service(CHAT).backends = all).unwrap();
    site.edge.wait_for("chat-3 is there", SOON, |s| has(s, "chat-3", true)).unwrap();
    site.edge.wait_all_up().unwrap();
    undisturbed(&load);
    assert!(site.visit(CHATS).unwrap().backends.contains_key("chat-3"));

    // Saved in place: no more newcomers for the second one, which keeps those it has.
    let mut config = site.edge.config().clone();
    weight(&mut config, "chat-2", 0);
    site.edge.overwrite(&config.to_string()).unwrap();
    let weightless = |status: &Status| status.weight(CHAT, "chat-2") == Some(0);
    site.edge.wait_for("chat-2 weighs nothing", SOON, weightless).unwrap();
    undisturbed(&load);
    assert!(!site.visit(CHATS).unwrap().backends.contains_key("chat-2"));

    // By signal: one less. Its clients are told, nobody else is.
    let before = load.stats();
    site.edge
        .configure(|config| {
            weight(config, "chat-2", 0);
            without(config, "chat-1");
        })
        .unwrap();
    site.edge.reload().unwrap();
    site.edge.wait_for("chat-1 is gone", SOON, |s| has(s, "chat-1", false)).unwrap();
    let now = load.wait_progress(3, LATER).unwrap();
    let disturbed = now.disturbed_beside(&before, "chat-1");
    assert!(disturbed.is_empty(), "{disturbed:#?}");
    assert_eq!(site.visit(CHATS).unwrap().backends.keys().collect::<Vec<_>>(), ["chat-3"]);
    site.smoothen();
    let stats = load.stop();
    assert_eq!(stats.wrong, 0, "{stats}");
}

#[test]
fn a_bad_file_changes_nothing() {
    require_root();
    let mut site = Plan::new(Forward::Nat, seed("bad file")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    undisturbed(&load);
    let good = site.edge.config().to_string();
    let before = site.edge.status().unwrap().configured();
    let bad = [
        ("TOML", "this is not TOML".to_owned()),
        ("10.2.0.300", good.replace("10.2.0.2:", "10.2.0.300:")),
        ("magic", good.replace("forward = \"nat\"", "forward = \"magic\"")),
        ("edge", String::new()),
    ];
    for (remark, text) in bad {
        site.edge.save_text(&text).unwrap();
        let refused = |status: &Status| status.refusal().is_some_and(|it| it.contains(remark));
        site.edge.wait_for("the file is refused", SOON, refused).unwrap();
        assert_eq!(site.edge.status().unwrap().configured(), before);
        undisturbed(&load);
    }
    assert_eq!(site.visit(CHATS).unwrap().backends.len(), 3);
    // The good file again is nothing new.
    site.edge.configure(|_| ()).unwrap();
    site.edge.reload().unwrap();
    site.edge.wait_for("nothing is refused", SOON, |it| it.refusal().is_none()).unwrap();
    undisturbed(&load);
    site.smoothen();
    assert_eq!(load.stop().wrong, 0);
}
