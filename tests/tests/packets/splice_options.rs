//! The options of spliced segments: timestamps and SACK blocks, wherever they stand.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tests::{
    packet::{
        Tcp,
        tcp::{ACK, PSH, option},
    },
    seed::seed,
};

use crate::{
    connection::VERSIONS,
    splice::{
        CLIENT, CLIENT_ACK, Splice, acknowledged_down, acknowledged_up, clocks_down, clocks_up,
        spliced,
    },
};

/// SACK blocks in some numbers, as sent and as received.
fn sack(blocks: &[(u32, u32)], translate: fn(u32) -> u32) -> (Vec<u8>, Vec<u8>) {
    let write = |translate: &dyn Fn(u32) -> u32| {
        let mut bytes = vec![5, 2 + 8 * blocks.len() as u8];
        for (left, right) in blocks {
            bytes.extend(translate(*left).to_be_bytes());
            bytes.extend(translate(*right).to_be_bytes());
        }
        bytes
    };
    (write(&|number| number), write(&translate))
}

fn blocks(count: usize, from: u32) -> Vec<(u32, u32)> {
    let edge = |n: usize| from.wrapping_add(1_460 * n as u32);
    (0..count).map(|n| (edge(2 * n + 1), edge(2 * n + 2))).collect()
}

fn check(
    plane: &mut tests::dataplane::Dataplane,
    splice: &Splice,
    name: &str,
    upwards: bool,
    (sent, received): (&[u8], &[u8]),
) {
    let tcp = |options: &[u8]| {
        let numbers = if upwards { (CLIENT, CLIENT_ACK) } else { (9_000, 7_000) };
        let tcp = Tcp::new(0, 0, ACK | PSH).numbers(numbers.0, numbers.1).payload(b"payload");
        Tcp { options: options.to_vec(), ..tcp }
    };
    match upwards {
        true => {
            let frame = splice.up(tcp(sent));
            let expected = splice.translated_up(&frame, received);
            plane.check(name, &frame.bytes(), &splice.goes_up(&frame, &expected));
        }
        false => {
            let frame = splice.down(tcp(sent));
            let expected = splice.translated_down(&frame, received);
            plane.check(name, &frame.bytes(), &splice.goes_down(&frame, &expected));
        }
    }
}

#[test]
fn every_layout_of_timestamps_and_sack() {
    const NOP: &[u8] = option::NOP;
    const END: &[u8] = option::END;
    // No stack knows kind 253 (RFC 4727).
    const STRANGE: &[u8] = &[253, 5, 8, 10, 1];
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced(v6);
        for upwards in [true, false] {
            let clocks = if upwards { clocks_up } else { clocks_down };
            let translate = if upwards { acknowledged_up } else { acknowledged_down };
            let (time, time_there) = clocks(0xffff_fff7, 0x17);
            for count in 0..=4 {
                let (sack, sack_there) = sack(&blocks(count, 0xffff_f000), translate);
                let layouts: [(&str, &[&[u8]]); 14] = [
                    ("timestamps alone, aligned", &[NOP, NOP, b"T"]),
                    ("timestamps first", &[b"T", NOP, NOP]),
                    ("between NOPs", &[NOP, b"T", NOP]),
                    ("an end behind", &[b"T", END]),
                    ("SACK alone", &[NOP, NOP, b"S"]),
                    ("SACK alone, not aligned", &[NOP, b"S"]),
                    ("SACK first", &[b"S", END]),
                    ("both, as Linux has them", &[NOP, NOP, b"T", NOP, NOP, b"S"]),
                    ("both, SACK first", &[NOP, NOP, b"S", NOP, NOP, b"T"]),
                    ("both, packed", &[b"T", b"S"]),
                    ("both, packed, SACK first", &[b"S", b"T", END]),
                    ("behind what nobody knows", &[STRANGE, NOP, b"T"]),
                    ("behind the end", &[END, b"T"]),
                    ("behind a broken option", &[&[253, 1], b"T"]),
                ];
                for (name, layout) in layouts {
                    let known = !name.starts_with("behind the end") && !name.contains("broken");
                    let write = |translated: bool| -> Vec<u8> {
                        let part = |part: &&[u8]| match (*part, translated && known) {
                            (b"T", true) => time_there.to_vec(),
                            (b"T", false) => time.to_vec(),
                            (b"S", true) => sack_there.clone(),
                            (b"S", false) => sack.clone(),
                            (other, _) => other.to_vec(),
                        };
                        let mut bytes: Vec<u8> = layout.iter().flat_map(part).collect();
                        bytes.resize(bytes.len().next_multiple_of(4), 0);
                        bytes
                    };
                    let (sent, received) = (write(false), write(true));
                    if sent.len() > 40 {
                        continue;
                    }
                    let name = format!("{name}, {count} blocks, upwards: {upwards}");
                    check(&mut plane, &splice, &name, upwards, (&sent, &received));
                }
            }
        }
    }
}

#[test]
fn options_of_a_wrong_size_stay_as_they_are() {
    let (mut plane, splice) = spliced(false);
    let odd_sack = [&[5, 11][..], &[9; 9], &[1]].concat();
    let short_time = [8, 8, 1, 2, 3, 4, 5, 6];
    let endless = [1, 1, 5, 40, 1, 2, 3, 4];
    let cut = [1, 1, 1, 8];
    for (name, options) in [
        ("SACK with half a block", &odd_sack[..]),
        ("short timestamps", &short_time),
        ("SACK beyond the header", &endless),
        ("a kind without a length", &cut),
        ("a length of zero", &[1, 1, 8, 0]),
    ] {
        check(&mut plane, &splice, name, true, (options, options));
        check(&mut plane, &splice, name, false, (options, options));
    }
}

/// Options in any order, with padding between them, as long as they fit.
#[test]
fn random_layouts() {
    let seed = seed("layouts of TCP options");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut plane, splice) = spliced(false);
    for round in 0..2_000 {
        let upwards = random.random();
        let clocks = if upwards { clocks_up } else { clocks_down };
        let translate = if upwards { acknowledged_up } else { acknowledged_down };
        let time = clocks(random.random(), random.random());
        let count = random.random_range(0..=4);
        let edges: Vec<_> = (0..count).map(|_| (random.random(), random.random())).collect();
        let mut parts = vec![
            (time.0.to_vec(), time.1.to_vec()),
            sack(&edges, translate),
            (vec![28, 4, 8, 10], vec![28, 4, 8, 10]),
        ];
        for _ in 0..random.random_range(0..4) {
            parts.push((vec![1], vec![1]));
        }
        parts.shuffle(&mut random);
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for (there, here) in parts {
            if sent.len() + there.len() <= 40 {
                sent.extend(there);
                received.extend(here);
            }
        }
        let len = sent.len().next_multiple_of(4);
        sent.resize(len, 0);
        received.resize(len, 0);
        let name = format!("round {round}, seed {seed}");
        check(&mut plane, &splice, &name, upwards, (&sent, &received));
    }
}
