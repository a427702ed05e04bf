#!/usr/bin/env bash
# The main job, live: a volume served by NBD with a file system in use on it, three moments marked,
# the log cut into diffs while the volume works, every moment restored and proved. Options: --flip
# flips one bit in a diff first: the demo then shows that the damage is found, restores nothing and
# ends with status 1; --keep leaves the files for you to look at.
set -euo pipefail

flip=no keep=no
for option in "$@"; do
  case "$option" in
    --flip) flip=yes ;;
    --keep) keep=yes ;;
    *) echo "usage: $0 [--flip] [--keep]" >&2; exit 2 ;;
  esac
done

root=$(cd "$(dirname "$0")/.." && pwd)
walkeep=${WALKEEP:-${CARGO_TARGET_DIR:-$root/target}/release/walkeep}
export PATH=$PATH:/sbin:/usr/sbin
work=$(mktemp -d "${TMPDIR:-/tmp}/walkeep-demo.XXXXXX")
cd "$work"
mkdir files seen
export WALKEEP_HOME=$work/home
size=64M

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
tell() { printf '  $ %s\n' "${*//$walkeep/walkeep}"; }
run() { tell "$@"; "$@" 2>&1 | sed 's/^/    /'; }
fail() { echo "demo: $*" >&2; exit 1; }
has() { command -v "$1" > /dev/null; }
human() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }
size_of() { human "$(stat -c %s "$1")"; }

# Programs that run beside the demo. The shell need not tell how they end.
beside() { # log command...
  local log=$1; shift
  : > "$log" # here, so that nobody waits for what an earlier one wrote
  "$@" >> "$log" 2>&1 &
  child=$!
  disown
}
gone() { ! kill -0 "$1" 2> /dev/null; }

# Waits up to ten seconds for a condition.
await() { # what command...
  local what=$1 deadline=$((SECONDS + 10)); shift
  until "$@"; do
    [ $SECONDS -lt $deadline ] || fail "waited in vain for $what: $(cat ./*.log)"
    sleep 0.05
  done
}

# --- how the file system gets onto the volume ---
# mount: through nbdfuse and a loop device, mounted and used as any other. Otherwise each moment's
# file system (ext4, or just a tar) is made beside the volume and copied onto it by nbdcopy.

can_mount() {
  has nbdfuse && has losetup && has mkfs.ext4 && has e2fsck && has fstrim && has fsfreeze || return 1
  [ "$(id -u)" -eq 0 ] && { : <> /dev/fuse; } 2> /dev/null || return 1
  truncate -s 4M trial.img
  mkfs.ext4 -q trial.img && mount -o loop trial.img seen 2> /dev/null && umount seen && rm trial.img
}

choose_way() {
  has nbdcopy || fail "nbdcopy is missing: install the package libnbd-bin"
  if can_mount; then
    way=mount log_size=64M
    return
  fi
  # A copy writes every block of the volume, holes as zeros: the log needs room for four.
  log_size=320M
  if has mkfs.ext4 && has debugfs; then way=image; else way=tar; fi
  echo "  (no root, loop device, nbdfuse or ext4 tools here: instead of mounting the volume, the demo"
  echo "  copies a new $way onto it at each moment)"
}

serving='' fuse_pid='' loop=''

serve() {
  tell "$walkeep" volume serve demo "&"
  beside serve.log "$walkeep" volume serve demo
  serving=$child
  await "the server" grep -q 'served at' serve.log
  sed 's/^/    /' serve.log
  uri=$(sed -n 's/.*served at //p' serve.log)
}

# Ends the server: with KILL it has no chance to tidy up.
stop_server() { # signal
  kill "-$1" "$serving"
  await "the end of the server" gone "$serving"
  serving=''
}

# A disk of the kernel that leads to the volume.
attach() {
  [ -d fuse ] || mkdir fuse mnt
  beside nbdfuse.log nbdfuse fuse/disk "$uri"
  fuse_pid=$child
  await "nbdfuse" test -e fuse/disk
  loop=$(losetup --find --show fuse/disk)
}

mount_volume() { tell mount "$loop" mnt; mount "$loop" mnt; }

# A dead nbdfuse cannot be asked, the kernel can.
mounted() { grep -q " $work/$1 " /proc/mounts; }

# Takes the disk away, alive or dead.
detach() {
  if mounted mnt; then umount mnt 2> /dev/null || umount -l mnt; fi
  if [ -n "$loop" ]; then losetup -d "$loop"; loop=''; fi
  if mounted fuse; then umount fuse 2> /dev/null || umount -l fuse; fi
  if [ -n "$fuse_pid" ]; then await "the end of nbdfuse" gone "$fuse_pid"; fuse_pid=''; fi
}

clean_up() {
  set +e
  fsfreeze -u mnt 2> /dev/null
  mounted seen && umount seen
  [ -n "$fuse_pid" ] && kill "$fuse_pid" 2> /dev/null
  detach 2> /dev/null
  [ -n "$serving" ] && stop_server TERM
  [ "$keep" = yes ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- files and moments ---

# Where the files live: on the volume itself, or beside it.
files() { if [ $way = mount ]; then echo mnt; else echo files; fi; }

count() { find "$1" -name lost+found -prune -o -type f -print | wc -l; }

# Puts what is in "files" onto the volume, unless they are there already.
push() {
  [ $way = mount ] && return
  rm -f fs.img
  truncate -s $size fs.img
  if [ $way = image ]; then
    mkfs.ext4 -q -d files -E root_owner=0:0 fs.img
  else
    tar -C files -cf - . | dd of=fs.img conv=notrunc status=none
  fi
  tell nbdcopy --flush fs.img "$uri"
  nbdcopy --flush fs.img "$uri"
}

declare -a marks=(0)

# Marks this moment, and keeps what will prove it: the files, and a copy of the volume by nbdcopy,
# which knows nothing of logs and diffs.
moment() { # number
  push
  if [ $way = mount ]; then
    sync -f mnt
    run fstrim -v mnt
    fsfreeze -f mnt
  fi
  marks[$1]=$("$walkeep" volume mark demo)
  tell "$walkeep" volume mark demo
  echo "    ${marks[$1]}"
  nbdcopy "$uri" "copy$1.img"
  [ $way = mount ] && fsfreeze -u mnt
  sha256sum < "copy$1.img" > "moment$1.sha256"
  cp -r "$(files)" "tree$1"
  rm -rf "tree$1/lost+found"
  echo "  moment $1 is lsid ${marks[$1]}: $(count "tree$1") files; log since the one before:" \
    "$(human $(((marks[$1] - marks[$1 - 1]) * 4096)))"
}

# The server is killed without warning, and started again.
crash() {
  if [ $way = mount ]; then
    cp -r mnt before
    sync -f mnt
  else
    push
  fi
  tell kill -9 "$serving"
  stop_server KILL
  detach
  serve
  [ $way = mount ] || return 0
  attach
  mount_volume
  diff -r before mnt || fail "the server's death cost files"
  echo "  mounted again: all $(count mnt) files are there"
}

# --- the proof ---

read_files() { # image directory
  case $way in
    mount) mount -o ro,loop,noload "$1" "$2" ;;
    image) debugfs -R "rdump / $2" "$1" > debugfs.log 2>&1 ;;
    tar) tar -C "$2" -xf "$1" ;;
  esac
}

forget_files() { # directory
  if [ $way = mount ]; then umount "$1"; else rm -rf "${1:?}"/*; fi
}

prove() { # moment image
  local expected found fsck=''
  expected=$(cat "moment$1.sha256") found=$(sha256sum < "$2")
  [ "$expected" = "$found" ] || fail "moment $1: SHA-256 expected $expected, found $found"
  if [ $way != tar ]; then
    e2fsck -fn "$2" > fsck.log 2>&1 || fail "fsck of moment $1: $(cat fsck.log)"
    fsck=', fsck clean'
  fi
  read_files "$2" seen
  diff -r -x lost+found "tree$1" seen || fail "moment $1: the files differ"
  echo "  proved: moment $1: SHA-256 ${found:0:16}… equal$fsck, $(count seen) files read back and equal"
  forget_files seen
}

flip_bit() { # file
  local middle byte
  middle=$(($(stat -c %s "$1") / 2))
  byte=$(od -An -tu1 -j $middle -N 1 "$1")
  printf "$(printf '\\x%02x' $((byte ^ 4)))" | dd of="$1" bs=1 seek=$middle conv=notrunc status=none
  echo "  (one bit of $1 flipped at byte $middle of $(stat -c %s "$1"))"
}

# A command that must fail, with an error that names the place of the damage.
refused() { # file command...
  local damaged=$1; shift
  tell "$@"
  if "$@" > output.log 2> error.log; then fail "the damage of $damaged was not noticed"; fi
  sed 's/^/    /' error.log
  grep -q "$damaged: offset [0-9]" error.log || fail "the error does not name the place"
}

# --- the story ---

say "1. A volume: its data, the log that every write goes through first, and a server"
choose_way
run "$walkeep" volume create demo --data demo.data --log demo.log --size $size --log-size $log_size
serve

say "2. Moment 1: the sources of Walkeep on a file system on the volume"
if [ $way = mount ]; then
  tell nbdfuse fuse/disk "'$uri' &"
  attach
  tell losetup --find --show fuse/disk
  echo "    $loop"
  run mkfs.ext4 -q "$loop"
  mount_volume
fi
tell cp -r wire store src docs tests Cargo.lock README.md "$(files)"
cp -r "$root"/{wire,store,src,docs,tests,Cargo.lock,README.md} "$(files)"
moment 1

say "3. Moment 2: Walkeep becomes WALKEEP in wire/, numbers.txt appears"
find "$(files)/wire" -name '*.rs' -exec sed -i 's/Walkeep/WALKEEP/g' {} +
seq 200000 > "$(files)/numbers.txt"
moment 2

say "4. A crash: files change, then the server is killed and started again"
head -c 3000000 /dev/urandom > "$(files)/noise.bin"
crash

say "5. Moment 3: tests/ is deleted, docs/ copied, numbers.txt emptied, what is free trimmed"
rm -r "$(files)/tests"
cp -r "$(files)/docs" "$(files)/copies"
: > "$(files)/numbers.txt"
moment 3

say "6. The log becomes diffs, while the volume is served; then the log may be overwritten"
for n in 1 2 3; do
  run "$walkeep" wlog cat demo $n.wlog --begin "${marks[n - 1]}" --end "${marks[n]}"
  run "$walkeep" wlog to-wdiff --compress zstd $n.wlog $n.wdiff
done
if [ "$flip" = no ]; then
  run "$walkeep" volume checkpoint demo
  run "$walkeep" volume set-oldest demo "${marks[3]}"
  run "$walkeep" volume status demo
fi
detach
stop_server TERM

say "7. The diffs are checked and merged. The volume is not needed any more"
truncate -s $size base.img
if [ "$flip" = yes ]; then
  flip_bit 2.wdiff
  refused 2.wdiff "$walkeep" wdiff verify 2.wdiff
  refused 2.wdiff "$walkeep" wdiff merge -o merged.wdiff 1.wdiff 2.wdiff
  refused 2.wdiff "$walkeep" image cat --base base.img --diff 1.wdiff --diff 2.wdiff -o restored.img
  [ ! -e merged.wdiff ] && [ ! -e restored.img ] || fail "a failed command left its output"
  say "Proved: a single flipped bit is found and its place named, and nothing is made of damaged data:
neither a merged diff nor an image was left. Status 1, because moment 2 could not be restored."
  exit 1
fi
for n in 1 2 3; do run "$walkeep" wdiff verify $n.wdiff; done
run "$walkeep" wdiff merge -o merged.wdiff 1.wdiff 2.wdiff 3.wdiff

say "8. Every moment is restored from zeros and diffs, and proved"
diffs=()
for n in 1 2 3; do
  diffs+=(--diff "$n.wdiff")
  run "$walkeep" image cat --base base.img "${diffs[@]}" -o "restored$n.img"
  prove $n "restored$n.img"
done
run "$walkeep" image cat --base base.img --diff merged.wdiff -o merged.img
prove 3 merged.img

say "9. The proof can fail: one flipped bit is found, with its place"
cp 2.wdiff damaged.wdiff
flip_bit damaged.wdiff
refused damaged.wdiff "$walkeep" image cat --base base.img --diff 1.wdiff --diff damaged.wdiff -o lost.img
[ ! -e lost.img ] || fail "a failed restore left its output"

sum=$(($(stat -c %s 1.wdiff) + $(stat -c %s 2.wdiff) + $(stat -c %s 3.wdiff)))
say "Done in ${SECONDS} s: three moments of a volume of $(size_of base.img) in $(human $sum) of diffs ($(human "$(stat -c %s merged.wdiff)") merged), all restored byte for byte."
if [ "$keep" = yes ]; then
  cat <<TRY
Everything is in $work. Try:
  cd $work; export WALKEEP_HOME=\$PWD/home; alias walkeep=$walkeep
  walkeep volume serve demo             # the volume as it was left; nbdinfo and nbdcopy know the URI
  walkeep wdiff info 2.wdiff            # what changed between moments 1 and 2
  walkeep image cat --base base.img --diff 1.wdiff --diff 2.wdiff -o again.img
  debugfs -R 'ls -l /' again.img        # moment 2
  cmp again.img copy2.img               # silence: equal
TRY
fi
