use aya::{EbpfLoader, VerifierLogLevel, programs::Xdp};
fn main() -> anyhow::Result<()> {
    let bytes = std::fs::read(std::env::args().nth(1).unwrap())?;
    let mut ebpf = EbpfLoader::new()
        .map_max_entries("FLOWS4", 4096)
        .map_max_entries("FLOWS6", 4096)
        .verifier_log_level(VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS)
        .load(&bytes)?;
    for (name, program) in ebpf.programs_mut() {
        let p: &mut Xdp = program.try_into()?;
        match p.load() {
            Ok(()) => {
                let i = p.info()?;
                println!("{name}: ok, {:?} insns", i.verified_instruction_count())
            }
            Err(e) => { println!("{:?}", t.elapsed()); let t = format!("{e:?}"); let t = t.replace("\\n", "\n"); std::fs::write("/tmp/verifier.log", &t)?; } }
    }
    Ok(())
}
