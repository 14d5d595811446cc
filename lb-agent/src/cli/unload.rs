//! `lb-agent unload`.

use anyhow::Result;
use clap::Args;
use lb_agent::{run, unload};

use super::WhichEdge;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    which: WhichEdge,
}

pub fn unload(arguments: &Arguments) -> Result<()> {
    let (edge, vips) = match (&arguments.which.edge, &arguments.which.config) {
        (_, Some(file)) => {
            let config = run::load_config(file)?.config;
            let listeners = config.services.iter().flat_map(|service| &service.listen);
            (config.edge.name, listeners.map(|addr| addr.ip()).collect())
        }
        (edge, None) => (edge.clone().unwrap_or_default(), Default::default()),
    };
    let removed = unload::unload(&edge, vips)?;
    println!("edge {edge:?}: {removed}");
    Ok(())
}
