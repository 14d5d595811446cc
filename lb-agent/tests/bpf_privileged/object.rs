//! Writes BPF object files: an ELF file with one XDP program and maps as aya-ebpf declares them.

use lb_agent::bpf::specs::MapSpec;

/// `r0 = XDP_PASS; exit`
pub const PASS: &[u64] = &[0x0000_0002_0000_00b7, 0x95];
/// `r0 = XDP_DROP; exit`
pub const DROP: &[u64] = &[0x0000_0001_0000_00b7, 0x95];
/// `exit` without a return value, which the verifier refuses.
pub const INVALID: &[u64] = &[0x95];

const SECTION_HEADER: usize = 64;
const SECTION_NAMES: &[u8] = b"\0license\0xdp.frags\0maps\0.symtab\0.strtab\0.shstrtab\0";

struct Section<'a> {
    name: &'a str,
    kind: u32,
    flags: u64,
    contents: &'a [u8],
    link: u32,
    info: u32,
    entry: u64,
}

/// An object with this program, named `sluice`, and these maps.
pub fn object(instructions: &[u64], maps: &[MapSpec]) -> Vec<u8> {
    let code: Vec<u8> = instructions.iter().flat_map(|i| i.to_le_bytes()).collect();
    let mut definitions = Vec::new();
    let mut names = vec![0];
    let mut symbols = vec![0; 24];
    symbols.extend(symbol(&mut names, "sluice", FUNCTION, 2, 0, code.len()));
    for map in maps {
        let at = definitions.len();
        // id and pinning are zero.
        let numbers =
            [map.map_type as u32, map.key_size, map.value_size, map.max_entries, map.flags, 0, 0];
        definitions.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        symbols.extend(symbol(&mut names, map.name, OBJECT, 3, at, 28));
    }
    let section = |name, kind, flags, contents| Section {
        name,
        kind,
        flags,
        contents,
        link: 0,
        info: 0,
        entry: 0,
    };
    let sections = [
        section("license", 1, 3, b"GPL\0"),
        section("xdp.frags", 1, 6, &code),
        section("maps", 1, 3, &definitions),
        Section { link: 5, info: 1, entry: 24, ..section(".symtab", 2, 0, &symbols) },
        section(".strtab", 3, 0, &names),
        section(".shstrtab", 3, 0, SECTION_NAMES),
    ];
    let mut file = vec![0; 64];
    let mut headers = vec![0; SECTION_HEADER];
    for Section { name, kind, flags, contents, link, info, entry } in sections {
        file.resize(file.len().next_multiple_of(8), 0);
        let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
        let at = SECTION_NAMES.windows(wanted.len()).position(|name| name == wanted).unwrap() + 1;
        headers.extend((at as u32).to_le_bytes());
        headers.extend(kind.to_le_bytes());
        headers.extend(flags.to_le_bytes());
        headers.extend(0_u64.to_le_bytes()); // address
        headers.extend((file.len() as u64).to_le_bytes());
        headers.extend((contents.len() as u64).to_le_bytes());
        headers.extend(link.to_le_bytes());
        headers.extend(info.to_le_bytes());
        headers.extend(8_u64.to_le_bytes()); // alignment
        headers.extend(entry.to_le_bytes());
        file.extend(contents);
    }
    file.resize(file.len().next_multiple_of(8), 0);
    let table = file.len() as u64;
    file.extend(&headers);
    file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put(&mut file, 16, &1_u16.to_le_bytes()); // relocatable
    put(&mut file, 18, &247_u16.to_le_bytes()); // BPF
    put(&mut file, 20, &1_u32.to_le_bytes());
    put(&mut file, 40, &table.to_le_bytes());
    put(&mut file, 52, &64_u16.to_le_bytes()); // size of this header
    put(&mut file, 58, &(SECTION_HEADER as u16).to_le_bytes());
    put(&mut file, 60, &7_u16.to_le_bytes()); // sections
    put(&mut file, 62, &6_u16.to_le_bytes()); // .shstrtab
    file
}

const OBJECT: u8 = 1;
const FUNCTION: u8 = 2;

fn symbol(
    names: &mut Vec<u8>,
    name: &str,
    kind: u8,
    section: u16,
    at: usize,
    size: usize,
) -> Vec<u8> {
    const GLOBAL: u8 = 1 << 4;
    let mut symbol = (names.len() as u32).to_le_bytes().to_vec();
    names.extend(name.bytes().chain([0]));
    symbol.extend([GLOBAL | kind, 0]);
    symbol.extend(section.to_le_bytes());
    symbol.extend((at as u64).to_le_bytes());
    symbol.extend((size as u64).to_le_bytes());
    symbol
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
