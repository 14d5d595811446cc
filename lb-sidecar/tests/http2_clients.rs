//! HTTP/2 with clients of others: curl, and Node.js with a WebSocket's extended CONNECT.

mod harness;

use harness::{http2::switch, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

/// Runs a program to its end, and returns what it says.
async fn said(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = timeout(LONG, command.args(args).kill_on_drop(true).output());
    let output = output.await.expect("it ends").unwrap_or_else(|error| {
        panic!("{program}: {error}; the feature `web` wants curl and node")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Says how long a request's body is, or echoes on a WebSocket.
async fn serve(mut stream: TcpStream) {
    while let Some(head) = read_head(&mut stream).await {
        if field(&head, "upgrade").is_some() {
            stream.write_all(switch(&head).as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            return;
        }
        let length = field(&head, "content-length").map_or(0, |it| it.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let text = length.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[test]
fn curl_by_prior_knowledge() {
    run(|| async {
        let server = Server::new(serve).await;
        let edge = Edge::new(&[server.address], |service| service.http.h2c = true);
        let url = format!("http://{}/", edge.address);
        let curl = ["-s", "--http2-prior-knowledge", "-w", " %{http_version} %{http_code}", &url];
        assert_eq!(said("curl", &curl).await, "0 2 200");
        // More than the windows hold.
        let file = std::env::temp_dir().join(format!("sluice-http2-{}", std::process::id()));
        std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
        let body = format!("@{}", file.display());
        let said = said("curl", &[&curl[..], &["--data-binary", &body]].concat()).await;
        std::fs::remove_file(&file).unwrap();
        assert_eq!(said, "3000000 2 200");
        assert_eq!(edge.count("connection"), edge.count("http2_connection"));
        edge.quiet().await;
    });
}

const SCRIPT: &str = r#"
const session = require("http2").connect(process.argv[1]);
session.on("remoteSettings", (settings) => {
    if (!settings.enableConnectProtocol) throw new Error("no extended CONNECT");
    const chat = session.request({
        ":method": "CONNECT", ":protocol": "websocket", ":path": "/chat",
        "sec-websocket-version": "13",
    });
    let heard = "";
    chat.on("response", (head) => { console.log(head[":status"]); chat.write("hello"); });
    chat.on("data", (data) => {
        heard += data;
        if (heard === "hello") chat.end();
    });
    chat.on("end", () => { console.log(heard); session.close(); });
});
"#;

#[test]
fn node_with_a_websocket() {
    run(|| async {
        let server = Server::new(serve).await;
        let edge = Edge::new(&[server.address], |service| service.http.h2c = true);
        let said = said("node", &["-e", SCRIPT, &format!("http://{}", edge.address)]).await;
        assert_eq!(said, "200\nhello\n");
        assert_eq!(edge.count("upgraded"), 1);
        edge.quiet().await;
    });
}
