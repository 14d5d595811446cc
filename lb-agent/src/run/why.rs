//! Why a backend gets clients, or gets none, in a word. Pure.

use super::status::Backend;

/// What cannot be seen in the backend's own status.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// Its service takes all backends for live.
    pub panic: bool,
    /// The own zone gets all newcomers, and it is not in it.
    pub spare: bool,
    /// It drains because somebody asked for it at runtime.
    pub asked: bool,
}

/// The first thing that keeps it from new clients, or that it serves.
pub fn why(backend: &Backend, around: Around) -> String {
    let health = &backend.health;
    let error = health.last.as_ref().and_then(|last| last.error.as_deref());
    let down = || format!("down: {}", error.unwrap_or("its health checks fail"));
    if backend.draining_until.is_some() {
        return match around.asked {
            true => "drains, as an operator has asked".to_owned(),
            false => "drains, as the file says".to_owned(),
        };
    }
    if backend.weight == 0 {
        return "has weight 0".to_owned();
    }
    if health.state == "down" {
        return match around.panic {
            true => format!("gets clients though {}", down()),
            false => down(),
        };
    }
    if let Some(ejected) = &backend.ejected {
        return format!("ejected for {:.0} s more: {}", ejected.seconds_left, ejected.reason);
    }
    if around.spare {
        return "spare: enough of the edge's own zone is up".to_owned();
    }
    match (health.state.as_str(), backend.effective_weight) {
        ("unknown", 0) => "not known yet: waits for its first good probe".to_owned(),
        (_, weight) if weight > 0 && weight < backend.weight => {
            format!("serves, and starts slowly: weight {weight} of {}", backend.weight)
        }
        _ => "serves".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(change: impl FnOnce(&mut serde_json::Value)) -> Backend {
        let mut json = serde_json::json!({
            "name": "a", "address": "10.2.0.2:80", "weight": 100, "effective_weight": 100, "share": {},
            "health": { "state": "up", "since_seconds": 1.0, "probes": 1, "failures": 0 }, "connections": 0,
        });
        change(&mut json);
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_first_reason_is_told() {
        let (usual, panic) = (Around::default(), Around { panic: true, ..Around::default() });
        let spare = Around { spare: true, ..Around::default() };
        let last = |error: &str| serde_json::json!({ "ok": false, "error": error, "latency_ms": 1.0, "ago_seconds": 1.0 });
        let ejected = serde_json::json!({ "seconds_left": 9.6, "times": 1, "reason": "5 connects in a row failed" });
        type Change<'a> = Box<dyn FnOnce(&mut serde_json::Value) + 'a>;
        let cases: Vec<(Change<'_>, Around, &str)> = vec![
            (Box::new(|_| {}), usual, "serves"),
            (Box::new(|it| it["weight"] = 0.into()), usual, "has weight 0"),
            (
                Box::new(|it| it["health"]["state"] = "down".into()),
                usual,
                "down: its health checks fail",
            ),
            (
                Box::new(|it| {
                    it["health"]["state"] = "down".into();
                    it["health"]["last"] = last("refused");
                }),
                panic,
                "gets clients though down: refused",
            ),
            (Box::new(|it| it["draining_until"] = 5.into()), usual, "drains, as the file says"),
            (
                Box::new(|it| it["ejected"] = ejected.clone()),
                usual,
                "ejected for 10 s more: 5 connects in a row failed",
            ),
            (Box::new(|_| {}), spare, "spare: enough of the edge's own zone is up"),
            (
                Box::new(|it| {
                    it["health"]["state"] = "unknown".into();
                    it["effective_weight"] = 0.into();
                }),
                usual,
                "not known yet: waits for its first good probe",
            ),
            (
                Box::new(|it| it["effective_weight"] = 30.into()),
                usual,
                "serves, and starts slowly: weight 30 of 100",
            ),
        ];
        for (change, around, wanted) in cases {
            assert_eq!(why(&backend(change), around), wanted);
        }
    }
}
