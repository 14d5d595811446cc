//! nginx, as its documentation sets up a WebSocket proxy.

use std::{
    fmt::Write as _,
    fs,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit};

use crate::bench::site::{Site, VIP, VIP_PORT};
use crate::{owner::OwnedDir, process::Process};

const SOON: Duration = Duration::from_secs(5);

/// A running one.
pub struct Nginx {
    pub process: Process,
    _scratch: OwnedDir,
}

impl Nginx {
    pub fn start(site: &Site, workers: u32) -> Result<Self> {
        site.edge.ip(&format!("address replace {VIP}/32 dev lo"))?;
        let scratch = OwnedDir::scratch("nginx")?;
        let file = scratch.path().join("nginx.conf");
        fs::write(&file, config(site, workers, scratch.path())?)?;
        let mut command = site.edge.command("nginx");
        command.arg("-p").arg(scratch.path()).arg("-c").arg(&file);
        let mut process = Process::spawn("nginx", command)?;
        let deadline = Instant::now() + SOON;
        while site.client.run(|| TcpStream::connect((VIP, VIP_PORT))).is_err() {
            if !process.is_running() || Instant::now() > deadline {
                bail!("nginx does not listen; it said:\n{}", process.output().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { process, _scratch: scratch })
    }
}

/// The client's address for the backend; no log. It has no cookie of its own: less to do than the others.
fn config(site: &Site, workers: u32, scratch: &Path) -> Result<String> {
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let directory = scratch.display();
    let mut config = format!(
        "daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile {files};
pid {directory}/pid;
error_log stderr warn;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen {VIP}:{VIP_PORT} reuseport;
        location / {{
            proxy_pass http://chat;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }}
    }}
    upstream chat {{
        keepalive 64;
"
    );
    for address in site.backends() {
        writeln!(config, "        server {address};")?;
    }
    config.push_str("    }\n}\n");
    Ok(config)
}
