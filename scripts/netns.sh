#!/usr/bin/env bash
# Network namespaces joined by a bridge, each a machine to MPI, to test what a cut cable does. Needs root and iproute2.
#   netns.sh up N [DELAY]       N namespaces, every packet DELAY (such as 1ms) late, by tc netem or, without it, delaying_switch.py
#   netns.sh exec I CMD...      a command on machine I, from 0, under that machine's host name
#   netns.sh mpirun N CMD...    one rank per machine; mpirun itself runs on machine 0; MPIRUN_FLAGS are handed on
#   netns.sh cut I | mend I     machine I's cable
#   netns.sh down
# NETNS_NAME (default lmm) starts all names, NETNS_SUBNET (default 10.77.0) all addresses, so that two can be up at once.
set -euo pipefail

name=${NETNS_NAME:-lmm}
subnet=${NETNS_SUBNET:-10.77.0}
bridge=${name}-br
switch=${TMPDIR:-/tmp}/$name.switch

up() {
    local machines=$1 delay=${2:-}
    for ((i = 0; i < machines; i++)); do
        ip netns add "$name$i"
        ip -n "$name$i" link set lo up
    done
    if [[ -z $delay ]]; then
        join_by_bridge "$machines" ""
    elif ip netns exec "${name}0" tc qdisc add dev lo root netem delay "$delay" 2>/dev/null; then
        ip netns exec "${name}0" tc qdisc del dev lo root
        join_by_bridge "$machines" "$delay"
    elif [[ -w /dev/net/tun ]] && command -v python3 >/dev/null; then
        join_by_switch "$machines" "$delay"
    else
        echo "no delay: there is neither netem nor /dev/net/tun with python3" >&2
        join_by_bridge "$machines" ""
    fi
    for ((i = 0; i < machines; i++)); do
        ip -n "$name$i" addr add "$subnet.$((i + 1))/24" dev "$name-m$i"
        ip -n "$name$i" link set "$name-m$i" up
    done
}

join_by_bridge() {
    local machines=$1 delay=$2
    ip link add "$bridge" type bridge
    ip link set "$bridge" up
    for ((i = 0; i < machines; i++)); do
        ip link add "$name-b$i" type veth peer name "$name-m$i"
        ip link set "$name-b$i" master "$bridge" up
        ip link set "$name-m$i" netns "$name$i"
        [[ -z $delay ]] || ip netns exec "$name$i" tc qdisc add dev "$name-m$i" root netem delay "$delay"
    done
}

# Kernels without netem: a switch of our own, which takes milliseconds only.
join_by_switch() {
    local machines=$1 milliseconds=${2%ms} names=()
    for ((i = 0; i < machines; i++)); do names+=("$name-m$i"); done
    mkdir "$switch"
    setsid python3 "$(dirname "$0")/delaying_switch.py" "$(awk "BEGIN { print $milliseconds / 1000 }")" "$switch" \
        "${names[@]}" >"$switch/log" 2>&1 </dev/null &
    echo $! >"$switch/pid"
    for ((tries = 0; tries < 100; tries++)); do
        if grep -qs ready "$switch/log"; then
            for ((i = 0; i < machines; i++)); do ip link set "$name-m$i" netns "$name$i"; done
            return
        fi
        sleep 0.05
    done
    cat "$switch/log" >&2
    return 1
}

down() {
    if [[ -e $switch/pid ]]; then
        kill "$(cat "$switch/pid")" 2>/dev/null || true
        rm -r "$switch"
    fi
    for namespace in $(ip netns list | awk '{print $1}' | grep -x "${name}[0-9]*" || true); do
        ip netns pids "$namespace" | xargs -r kill -9
        ip link del "$name-b${namespace#"$name"}" 2>/dev/null || true
        ip netns del "$namespace"
    done
    ip link del "$bridge" 2>/dev/null || true
}

cut() {
    if [[ -e $switch ]]; then touch "$switch/cut-$1"; else ip link set "$name-b$1" down; fi
}

mend() {
    if [[ -e $switch ]]; then rm "$switch/cut-$1"; else ip link set "$name-b$1" up; fi
}

on() {
    local machine=$1
    shift
    exec ip netns exec "$name$machine" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$name$machine" "$@"
}

# What mpirun calls in place of ssh: ADDRESS, then the words of one shell command.
agent() {
    local address=$1
    shift
    on $((${address##*.} - 1)) sh -c "$*"
}

launch() {
    local machines=$1 hosts=
    shift
    for ((i = 1; i <= machines; i++)); do hosts+=,$subnet.$i:1; done
    local self
    self=$(realpath "$0")
    # Daemons notice a cut cable in (time + interval * probes) seconds, where the kernel's default is hours.
    on 0 mpirun --allow-run-as-root --host "${hosts#,}" \
        --mca plm_rsh_agent "env NETNS_NAME=$name NETNS_SUBNET=$subnet $self agent" --mca plm_rsh_no_tree_spawn 1 \
        --mca oob_tcp_if_include "$subnet.0/24" --mca btl_tcp_if_include "$subnet.0/24" --mca btl tcp,self --mca pml ob1 \
        --mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3 \
        ${MPIRUN_FLAGS:-} "$@"
}

case ${1:-} in
up) up "${@:2}" ;;
down) down ;;
exec) on "${@:2}" ;;
agent) agent "${@:2}" ;;
mpirun) launch "${@:2}" ;;
cut) cut "$2" ;;
mend) mend "$2" ;;
*)
    sed -n '2,8s/^# //p' "$0" >&2
    exit 2
    ;;
esac
