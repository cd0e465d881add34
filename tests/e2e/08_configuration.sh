#!/usr/bin/env bash
# A wrong configuration: one line that names file, line and remedy; the exit code is as documented.
source "$(dirname "$0")/lib.sh"
configure host1
refused() { # DESCRIPTION PATTERN SED-SCRIPT FILE PROGRAM...
  local what=$1 pattern=$2 script=$3 file=$4 out code=0; shift 4
  cp "$D/$file.toml" "$D/bad.toml"; sed -i "$script" "$D/bad.toml"
  out=$(timeout 60 "$@" 2>&1) || code=$?
  [ "$code" = 2 ] || die "$what: exit $code, wanted 2: $out"
  grep -qE "$pattern" <<< "$out" || die "$what: the message does not match '$pattern': $out"
  [ "$(grep -c . <<< "$out")" = 1 ] || die "$what: more than one line: $out"
  say "ok: $what: $out"
}
host=(tidemark-fs --config "$D/bad.toml" -f "$D/mnt/host1")
check=(tidemark config check "$D/bad.toml")
refused "unknown key" 'bad.toml:[0-9]+: .*(colour)' '/^name = /a colour = "red"' host1 "${host[@]}"
refused "unknown key, config check" 'bad.toml:[0-9]+: .*(colour)' '/^name = /a colour = "red"' host1 "${check[@]}"
refused "bad size" 'bad.toml:[0-9]+: .*limit_bytes' 's/^limit_bytes = .*/limit_bytes = "many"/' host1 "${host[@]}"
refused "wrong type" 'bad.toml:[0-9]+: .*connections' 's/^connections = .*/connections = "two"/' host1 "${host[@]}"
refused "missing key" 'bad.toml.*certificate' '/^certificate = /d' host1 "${host[@]}"
refused "missing brick" 'no-such-brick' 's#brick1"#no-such-brick"#' host1 "${host[@]}"
state_before=$(find "$D/host1/state" | sort)
mounted_on() { refused "mount point: $1" "$2" "" host1 tidemark-fs --config "$D/bad.toml" -f "$3"; }
mounted_on "missing" 'no-such-directory: it is missing: create' "$D/no-such-directory"
touch "$D/a-file"
mounted_on "no directory" 'a-file: it is no directory' "$D/a-file"
mkdir "$D/taken dir"
mount -t tmpfs none "$D/taken dir"
AT_END+=("umount '$D/taken dir'")
mounted_on "already a mount" 'taken dir: a file system of type tmpfs is mounted there: unmount it' "$D/taken dir"
[ "$(find "$D/host1/state" | sort)" = "$state_before" ] || die "a refused mount point opened the journal: $(ls -R "$D/host1/state")"
say "ok: the journal was not opened for them"
refused "not TOML" 'bad.toml:[0-9]+' '1i [node' host1 "${host[@]}"
start shared1
refused "used port" "$SHARED_PORT" "s#/shared1/state#/other/state#; s#/run/shared1#/run/other#; s#/shared1/brick#/other/brick#g" shared1 \
  sh -c "mkdir -p '$D/other/state' '$D/other/brick1' '$D/other/brick2'; exec tidemark-shared --config '$D/bad.toml'"
expect "good files pass" tidemark config check "$D/host1.toml" "$D/shared1.toml" "$D/replica1.toml"
issue witness1 witness
{ common_config witness1 witness; printf '[listen]\naddress = "127.0.0.1:0"\n'; } > "$D/witness1.toml"
for node in shared1:shared replica1:replica witness1:witness; do
  expect "${node#*:}'s file passes its own check" "tidemark-${node#*:}" --config "$D/${node%%:*}.toml" --check
done
refused "another program's file" 'role: is "shared" but must be "replica"' "" shared1 tidemark-replica --config "$D/bad.toml" --check
