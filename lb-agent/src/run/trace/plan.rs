//! What somebody wants to trace, made into a filter; or why it cannot be.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::ticks_from_millis,
    addr::{V4, V6},
    trace,
};
use serde::{Deserialize, Serialize};

use super::says::Names;
use crate::{
    config::parse_duration,
    overrides::{Refusal, suggestion},
};

/// A trace is over then, whatever was asked for.
pub const LONGEST: Duration = Duration::from_secs(600);
const USUAL: Duration = Duration::from_secs(60);
const USUAL_RATE: u32 = 100;
const HIGHEST_RATE: u32 = 10_000;
const MOST_PACKETS: u64 = 1_000_000;

/// Whose packets, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `10.1.0.2`, `10.1.0.2:5000`, `10.1.0.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<String>,
    /// `NAME` or `SERVICE/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Packets after which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// After which it ends; a minute without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Most packets a second; 100 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// The same, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub filter: trace::Filter,
    pub count: u64,
    pub duration: Duration,
}

impl Question {
    /// Checks everything. `now` is in ticks.
    pub fn plan(&self, names: &Names, now: u32) -> Result<Plan, Refusal> {
        let client = self.client.as_deref().map(|text| End::parse("client", text)).transpose()?;
        let vip = self.vip.as_deref().map(|text| End::parse("vip", text)).transpose()?;
        let family = match (client, vip) {
            (Some(client), Some(vip)) if client.ip.is_ipv4() != vip.ip.is_ipv4() => {
                let error = format!(
                    "no packet is of {} and {}: their IP versions differ",
                    client.ip, vip.ip
                );
                return Err(Refusal::invalid(
                    error,
                    "write two addresses of one version".to_owned(),
                ));
            }
            (Some(end), _) | (_, Some(end)) if end.ip.is_ipv4() => 4,
            (None, None) => 0,
            _ => 6,
        };
        let backend = self.backend.as_deref().map(|name| backend(names, name)).transpose()?;
        let count = self.count.unwrap_or(MOST_PACKETS);
        range("count", count, MOST_PACKETS, "packets")?;
        let rate = self.rate.unwrap_or(USUAL_RATE);
        range("rate", rate.into(), HIGHEST_RATE.into(), "packets a second")?;
        let duration = match self.duration.as_deref() {
            Some(text) => duration(text)?,
            None => USUAL,
        };
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (client, client_mask) = client.map(End::words).unwrap_or_default();
        let (vip, vip_mask) = vip.map(End::words).unwrap_or_default();
        let until = now.wrapping_add(ticks_from_millis(millis));
        let backend = backend.unwrap_or(0);
        let filter = trace::Filter {
            client,
            vip,
            client_mask,
            vip_mask,
            family,
            backend,
            rate,
            until,
            _pad: 0,
        };
        Ok(Plan { filter, count, duration })
    }
}

/// An address, perhaps with a port, or a prefix.
#[derive(Clone, Copy)]
struct End {
    ip: IpAddr,
    /// Bits of it that count.
    len: u8,
    port: u16,
}

impl End {
    fn parse(key: &str, text: &str) -> Result<Self, Refusal> {
        let of = |ip: IpAddr, port| Self { ip, len: bits(ip), port };
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(of(ip, 0));
        }
        if let Ok(at) = text.parse::<SocketAddr>()
            && at.port() != 0
        {
            return Ok(of(at.ip(), at.port()));
        }
        if let Some((ip, len)) = text.split_once('/')
            && let (Ok(ip), Ok(len)) = (ip.parse::<IpAddr>(), len.parse::<u8>())
            && len <= bits(ip)
        {
            return Ok(Self { ip, len, port: 0 });
        }
        let error =
            format!("{key} {text:?} is not an IP address, with a port or without, or a prefix");
        let remedy =
            "write e.g. 198.51.100.7, 198.51.100.7:40000, [2001:db8::7]:40000 or 198.51.100.0/24";
        Err(Refusal::invalid(error, remedy.to_owned()))
    }

    /// As the filter has it, with the mask of the bits that count.
    fn words(self) -> (trace::End, [u32; 4]) {
        let words = |bytes: [u8; 16]| {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            words
        };
        let addr = match self.ip {
            IpAddr::V4(ip) => [V4::from(ip).0, 0, 0, 0],
            IpAddr::V6(ip) => V6::from(ip).0,
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
        let end = trace::End { addr, port: self.port.to_be(), _pad: 0 };
        (end, words(mask.to_be_bytes()))
    }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn range(key: &str, value: u64, most: u64, what: &str) -> Result<(), Refusal> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    let error = format!("{key} {value} is out of range");
    Err(Refusal::invalid(error, format!("write 1 to {most} {what}")))
}

fn duration(text: &str) -> Result<Duration, Refusal> {
    let duration = parse_duration(text).and_then(|duration| match duration {
        it if it.is_zero() => Err("is no time"),
        it if it > LONGEST => Err("is too long"),
        it => Ok(it),
    });
    duration.map_err(|what| {
        let remedy = format!("write e.g. \"30s\", at most {} s", LONGEST.as_secs());
        Refusal::invalid(format!("duration {text:?} {what}"), remedy)
    })
}

/// The number of a backend.
fn backend(names: &Names, wanted: &str) -> Result<u16, Refusal> {
    let is_it = |whole: &str| {
        whole == wanted || whole.split_once('/').is_some_and(|(_, name)| name == wanted)
    };
    let found: Vec<_> = names.backends.iter().filter(|(_, whole)| is_it(whole)).collect();
    match found.as_slice() {
        [(id, _)] => Ok(**id),
        [] => {
            let all: Vec<_> = names.backends.values().map(String::as_str).collect();
            let error = format!("no backend is called {wanted:?}");
            Err(Refusal::unknown(error, suggestion(wanted, &all)))
        }
        several => {
            let several: Vec<_> = several.iter().map(|(_, whole)| whole.as_str()).collect();
            let error = format!("several backends are called {wanted:?}");
            Err(Refusal::conflict(error, format!("write one of {}", several.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let backends = [(1, "chat/b1"), (2, "chat/b2"), (3, "files/b1")];
        Names {
            backends: backends.map(|(id, name)| (id, name.to_owned())).into(),
            ..Names::default()
        }
    }

    fn asked(change: impl FnOnce(&mut Question)) -> Result<Plan, Refusal> {
        let mut question = Question::default();
        change(&mut question);
        question.plan(&names(), 1_000)
    }

    #[test]
    fn nothing_said_is_everything_for_a_minute() {
        let plan = asked(|_| {}).unwrap();
        assert_eq!((plan.count, plan.duration), (MOST_PACKETS, USUAL));
        assert_eq!(plan.filter.until, 1_000 + ticks_from_millis(60_000));
        let rest = trace::Filter { rate: 100, until: plan.filter.until, ..Default::default() };
        assert_eq!(plan.filter, rest);
    }

    #[test]
    fn addresses_become_masks_in_network_byte_order() {
        let filter = asked(|it| {
            it.client = Some("198.51.100.0/24".into());
            it.vip = Some("203.0.113.10:80".into());
            it.backend = Some("files/b1".into());
        })
        .unwrap()
        .filter;
        assert_eq!(filter.client.addr[0].to_ne_bytes(), [198, 51, 100, 0]);
        assert_eq!(filter.client_mask[0].to_ne_bytes(), [255, 255, 255, 0]);
        assert_eq!((filter.vip.port.to_ne_bytes(), filter.family), ([0, 80], 4));
        assert_eq!(filter.vip_mask[0], u32::MAX);
        assert_eq!(filter.backend, 3);
        let filter = asked(|it| it.client = Some("[2001:db8::7]:5000".into())).unwrap().filter;
        assert_eq!((filter.client_mask, filter.family), ([u32::MAX; 4], 6));
        let everybody = asked(|it| it.client = Some("0.0.0.0/0".into())).unwrap().filter;
        assert_eq!((everybody.client_mask, everybody.family), ([0; 4], 4));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        type Change = fn(&mut Question);
        let cases: [(Change, &str, &str); 12] = [
            (|it| it.client = Some("10.1.0".into()), "client \"10.1.0\"", "198.51.100.7"),
            (|it| it.client = Some("10.1.0.0/33".into()), "10.1.0.0/33", "198.51.100.0/24"),
            (|it| it.client = Some("10.1.0.2:0".into()), "10.1.0.2:0", "198.51.100.7:40000"),
            (|it| it.vip = Some("edge".into()), "vip \"edge\"", "198.51.100.7"),
            (|it| it.backend = Some("b3".into()), "\"b3\"", "b"),
            (|it| it.backend = Some("b1".into()), "several", "chat/b1, files/b1"),
            (|it| it.count = Some(0), "count 0", "1 to 1000000"),
            (|it| it.rate = Some(0), "rate 0", "1 to 10000"),
            (|it| it.rate = Some(10_001), "rate 10001", "1 to 10000"),
            (|it| it.duration = Some("11m".into()), "\"11m\" is too long", "600 s"),
            (|it| it.duration = Some("0s".into()), "\"0s\"", "600 s"),
            (|it| it.duration = Some("soon".into()), "\"soon\"", "30s"),
        ];
        for (change, error, remedy) in cases {
            let refusal = asked(change).unwrap_err();
            assert!(refusal.error.contains(error), "{refusal:?}");
            assert!(refusal.remedy.contains(remedy), "{refusal:?}");
        }
        let differ = asked(|it| {
            it.client = Some("10.1.0.2".into());
            it.vip = Some("2001:db8::1".into());
        });
        assert!(differ.unwrap_err().error.contains("IP versions differ"));
    }
}
