#!/usr/bin/env bash
# The main job on real files: a base image, three moments kept as wdiffs, every moment restored and
# proved. Options: --flip flips one bit in a wdiff first: the demo then shows that the damage is
# found, restores nothing and ends with status 1; --keep leaves the files for you to look at.
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
if [ "$keep" = no ]; then trap 'rm -rf "$work"' EXIT; fi
cd "$work"
image_size=96M

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
run() { printf '  $ %s\n' "${*//$walkeep/walkeep}"; "$@" | sed 's/^/    /'; }
fail() { echo "demo: $*" >&2; exit 1; }
size_of() { numfmt --to=iec --suffix=B "$(stat -c %s "$1")"; }
used_of() { numfmt --to=iec --suffix=B "$(($(stat -c '%b * %B' "$1")))"; }

# Flips one bit in the middle of a file.
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
  printf '  $ %s\n' "${*//$walkeep/walkeep}"
  if "$@" > output.log 2> error.log; then fail "the damage of $damaged was not noticed"; fi
  sed 's/^/    /' error.log
  grep -q "$damaged: offset [0-9]" error.log || fail "the error does not name the place"
}

# --- the file system of the demo: ext4, made and changed without mounting; else a tar ---

if command -v mkfs.ext4 >/dev/null && command -v debugfs >/dev/null; then fs=ext4; else fs=tar; fi

make_image() { # tree image
  truncate -s $image_size "$2"
  if [ $fs = ext4 ]; then
    mkfs.ext4 -q -d "$1" -E root_owner=0:0 "$2"
  else
    tar -C "$1" -cf - . | dd of="$2" conv=notrunc status=none
  fi
}

# Brings an image to the state of a tree, file by file, as a person would.
change_image() { # old-tree new-tree image
  if [ $fs = tar ]; then rm "$3"; make_image "$2" "$3"; return; fi
  {
    (cd "$1" && find . -type f | sort) | while read -r f; do
      cmp -s "$1/$f" "$2/$f" || echo "rm $f"
    done
    (cd "$1" && find . -mindepth 1 -type d | sort -r) | while read -r d; do
      [ -d "$2/$d" ] || echo "rmdir $d"
    done
    (cd "$2" && find . -mindepth 1 -type d | sort) | while read -r d; do
      [ -d "$1/$d" ] || echo "mkdir $d"
    done
    (cd "$2" && find . -type f | sort) | while read -r f; do
      cmp -s "$1/$f" "$2/$f" || echo "write $2/$f $f"
    done
  } > commands
  debugfs -w -f commands "$3" > debugfs.log 2>&1 || fail "debugfs failed: $(tail -n 3 debugfs.log)"
  # Trims what was freed, as fstrim does on a mounted file system.
  e2fsck -fy -E discard "$3" > /dev/null 2>&1 || [ $? -le 1 ] || fail "e2fsck could not trim $3"
}

read_back() { # image directory
  mkdir "$2"
  if [ $fs = ext4 ]; then
    debugfs -R "rdump / $2" "$1" > /dev/null 2>&1
    rmdir "$2/lost+found"
  else
    tar -C "$2" -xf "$1"
  fi
}

check_fs() { [ $fs = tar ] || e2fsck -fn "$1" > fsck.log 2>&1 || fail "fsck of $1: $(cat fsck.log)"; }

# --- the story ---

say "1. A disk image with real files: the sources of Walkeep ($fs)"
mkdir tree0
cp -r "$root"/{wire,store,src,docs,tests,Cargo.lock,README.md} tree0/
find tree0 -name target -prune -exec rm -rf {} +
make_image tree0 base.img
check_fs base.img
echo "  base.img: $(size_of base.img), $(used_of base.img) used, $(find tree0 -type f | wc -l) files"

say "2. Three moments: files change, appear and vanish; each moment becomes a wdiff"
next_moment() { # number
  local before=$(($1 - 1))
  cp -r "tree$before" "tree$1"
  case $1 in
    1) echo "  moment 1: Walkeep becomes WALKEEP in wire/, numbers.txt appears"
       find tree1/wire -name '*.rs' -exec sed -i 's/Walkeep/WALKEEP/g' {} +
       seq 200000 > tree1/numbers.txt ;;
    2) echo "  moment 2: tests/ is deleted, so there are fewer files; noise.bin appears"
       rm -r tree2/tests
       head -c 3000000 /dev/urandom > tree2/noise.bin ;;
    3) echo "  moment 3: copies/ appears, numbers.txt is emptied, noise.bin deleted"
       mkdir tree3/copies && cp tree3/docs/*.md tree3/copies/
       : > tree3/numbers.txt
       rm tree3/noise.bin ;;
  esac
  cp --sparse=always "$([ "$before" = 0 ] && echo base.img || echo "moment$before.img")" "moment$1.img"
  echo "    now $(find "tree$1" -type f | wc -l) files"
  change_image "tree$before" "tree$1" "moment$1.img"
  check_fs "moment$1.img"
  sha256sum < "moment$1.img" > "moment$1.sha256"
}
for n in 1 2 3; do
  next_moment $n
  before=$([ $n = 1 ] && echo base.img || echo "moment$((n - 1)).img")
  run "$walkeep" image diff --compress zstd --wdiff "$n.wdiff" "$before" "moment$n.img"
  rm -f "$([ $n = 1 ] && echo none || echo "moment$((n - 1)).img")"
done
rm moment3.img
echo "  the images of the moments are gone; left: base.img and" ?.wdiff

say "3. The wdiffs are checked, and merged into one"
if [ "$flip" = yes ]; then
  flip_bit 2.wdiff
  refused 2.wdiff "$walkeep" wdiff verify 2.wdiff
  refused 2.wdiff "$walkeep" wdiff merge -o merged.wdiff 1.wdiff 2.wdiff
  refused 2.wdiff "$walkeep" image cat --base base.img --diff 1.wdiff --diff 2.wdiff -o restored.img
  [ ! -e merged.wdiff ] && [ ! -e restored.img ] || fail "a failed command left its output"
  say "Proved: a single flipped bit is found and its place named, and nothing is made of damaged data:
neither a merged wdiff nor an image was left. Status 1, because moment 2 could not be restored."
  exit 1
fi
for n in 1 2 3; do run "$walkeep" wdiff verify $n.wdiff; done
run "$walkeep" wdiff merge -o merged.wdiff 1.wdiff 2.wdiff 3.wdiff

say "4. Every moment is restored from base + wdiffs, and proved"
prove() { # moment image
  local expected found
  expected=$(cat "moment$1.sha256"); found=$(sha256sum < "$2")
  [ "$expected" = "$found" ] || fail "moment $1: SHA-256 expected $expected, found $found"
  check_fs "$2"
  rm -rf files && read_back "$2" files
  diff -r "tree$1" files > /dev/null || fail "moment $1: the files differ"
  echo "  moment $1: SHA-256 ${found%% *} equal$([ $fs = tar ] || echo ', fsck clean'), $(find files -type f | wc -l) files read back and equal"
}
diffs=()
for n in 1 2 3; do
  diffs+=(--diff "$n.wdiff")
  run "$walkeep" image cat --base base.img "${diffs[@]}" -o restored.img
  prove $n restored.img
done
run "$walkeep" image cat --base base.img --diff merged.wdiff -o restored.img
prove 3 restored.img
cp --sparse=always base.img applied.img
run "$walkeep" wdiff redo merged.wdiff applied.img
prove 3 applied.img

say "5. The proof can fail: one flipped bit is found, with its place"
cp 2.wdiff damaged.wdiff
flip_bit damaged.wdiff
refused damaged.wdiff "$walkeep" image cat --base base.img --diff 1.wdiff --diff damaged.wdiff -o lost.img
[ ! -e lost.img ] || fail "a failed restore left its output"

say "Done: three moments, $(($(stat -c %s 1.wdiff) + $(stat -c %s 2.wdiff) + $(stat -c %s 3.wdiff))) bytes of wdiffs, all restored byte for byte (${SECONDS} s)."
if [ "$keep" = yes ]; then echo "Kept in $work"; fi
