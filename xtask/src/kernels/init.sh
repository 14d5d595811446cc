#!/bin/busybox sh
# The whole user space of the machine that `cargo xtask kernels` boots: an edge is started, traced, killed,
# started again, stopped and removed. The words SLUICE-... are what the caller looks for.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs run /run
$b ip link set lo up
$b ip addr add 10.2.0.1/32 dev lo
echo "SLUICE-KERNEL $($b uname -r)"

ready() {
    tries=0
    until $b wget -q -O /dev/null http://127.0.0.1:9900/healthz 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries = 60 ] && return 1
        $b sleep 1
    done
}

start() {
    /lb-agent run --config /edge.toml --log-format human &
    agent=$!
}

{
    start && ready && echo SLUICE-READY &&
    /lb-agent trace --duration 1s && echo SLUICE-TRACED &&
    kill -9 $agent && ! wait $agent && start && ready && echo SLUICE-ADOPTED &&
    kill $agent && wait $agent && /lb-agent unload --edge kernels && [ ! -e /sys/fs/bpf/sluice ] &&
    echo SLUICE-DONE
} 2>&1
$b poweroff -f
