# Outlives the test process and removes a machine without a trace: processes, loop devices, mounts, control groups, files.
# Started with the machine's folder and control group; waits on standard input, which closes when the owner lets go or dies.
dir=$1 cgroup=$2
trap '' INT TERM HUP
cat >/dev/null

for _ in $(seq 200); do
    if [ -e "$cgroup/cgroup.kill" ]; then
        echo 1 >"$cgroup/cgroup.kill"
    else
        # Before Linux 5.14.
        find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do kill -9 "$pid"; done
    fi
    grep -qs '^populated 1' "$cgroup/cgroup.events" || break
    sleep 0.05
done
for backing in /sys/block/loop*/loop/backing_file; do
    [ -e "$backing" ] || continue
    case $(cat "$backing") in
    "$dir"/*)
        device=${backing#/sys/block/}
        losetup --detach "/dev/${device%%/*}"
        ;;
    esac
done
mountpoint -q "$dir/root" && umount --lazy "$dir/root"
for pool in "$dir"/*.pool; do
    mountpoint -q "$pool" && umount --lazy "$pool"
done
for _ in $(seq 100); do
    [ -d "$cgroup" ] || break
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "$cgroup" ] && sleep 0.02
done
rm -rf --one-file-system "$dir"
