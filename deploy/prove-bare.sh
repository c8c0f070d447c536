#!/usr/bin/env bash
# Proves that a bare Debian 12 and a fresh clone are enough: makes a root with nothing but git, make,
# sudo and certificates, clones this repository's HEAD into it, and runs commands there as an
# ordinary user. A machine that has been worked on hides missing install steps; this one cannot.
#
#   deploy/prove-bare.sh [options] [COMMAND...]     default commands: 'make test' 'make demo'
#
#   --root DIR      where the root lives (default /var/tmp/denoised-bare); reused if it is there
#   --fresh         throw an existing root away first
#   --reclone       keep installed packages and caches, only clone again
#   --as-root       run the commands as root instead of as a user with sudo
#   --mirror URL    Debian mirror (default: debootstrap's own)
#   --sources FILE  apt sources for the root (default: /etc/apt/sources.list.d/debian.sources if any)
#   --ca FILE       certificate bundle for the root (default: SSL_CERT_FILE if set)
#   --pass NAME     hand this environment variable through, may be given again
#                   (PIP_*, http_proxy, https_proxy, no_proxy and SSL_CERT_FILE always are)
#
# Needs root and debootstrap. Mounts and processes end with the script. Each command's time and exit
# status is printed; the script fails with the first command that does.
set -euo pipefail

readonly repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bare=/var/tmp/denoised-bare
sources=/etc/apt/sources.list.d/debian.sources
ca="${SSL_CERT_FILE:-}"
mirror=""
user=builder
fresh=no
reclone=no
passed=(PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_DEFAULT_TIMEOUT http_proxy https_proxy no_proxy
        SSL_CERT_FILE REQUESTS_CA_BUNDLE)
commands=()

say() { printf 'prove-bare: %s\n' "$*"; }
fail() { printf 'prove-bare: error: %s\n' "$*" >&2; exit 1; }

parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --root) bare="$2"; shift ;;
      --mirror) mirror="$2"; shift ;;
      --sources) sources="$2"; shift ;;
      --ca) ca="$2"; shift ;;
      --pass) passed+=("$2"); shift ;;
      --fresh) fresh=yes ;;
      --reclone) reclone=yes ;;
      --as-root) user=root ;;
      -h|--help) sed -n '2,/^set -/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
      -*) fail "unknown option '$1'" ;;
      *) commands+=("$1") ;;
    esac
    shift
  done
  [ ${#commands[@]} -gt 0 ] || commands=('make test' 'make demo')
}

bootstrap() {
  if [ "$fresh" = yes ]; then
    say "removing $bare"
    rm -rf --one-file-system "$bare"
  fi
  [ ! -e "$bare/.bootstrapped" ] || { say "reusing $bare"; return; }
  say "debootstrap bookworm into $bare"
  rm -rf --one-file-system "$bare"
  debootstrap --variant=minbase --include=git,make,sudo,ca-certificates bookworm "$bare" \
    ${mirror:+"$mirror"} >"$bare.log" 2>&1 || { tail -n 20 "$bare.log" >&2; fail "debootstrap"; }
  if [ -f "$sources" ]; then
    rm -f "$bare/etc/apt/sources.list"
    cp "$sources" "$bare/etc/apt/sources.list.d/"
  fi
  if [ -n "$ca" ]; then
    cp "$ca" "$bare/etc/ssl/certs/ca-certificates.crt"
  fi
  chroot "$bare" useradd --create-home --shell /bin/bash builder
  echo 'builder ALL=(ALL) NOPASSWD: ALL' >"$bare/etc/sudoers.d/builder"
  touch "$bare/.bootstrapped"
}

home() { [ "$user" = root ] && echo /root || echo "/home/$user"; }

clone() {
  local target="$bare$(home)/denoised"
  cp /etc/resolv.conf /etc/hosts "$bare/etc/"
  if [ -d "$target" ] && [ "$reclone" = no ]; then
    say "reusing the clone in $target"
    return
  fi
  rm -rf "$target"
  git clone --quiet --no-hardlinks "$repository" "$target"
  say "cloned $(git -C "$target" log -1 --format='%h %s')"
  chroot "$bare" chown -R "$user:" "$(home)/denoised"
}

# One command inside, in its own mount and process namespaces, with a small clean environment.
inside() {
  local name environment=("HOME=$(home)" "USER=$user" "LANG=C.UTF-8" "TERM=dumb"
                          "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
  for name in "${passed[@]}"; do
    [ -z "${!name:-}" ] || environment+=("$name=${!name}")
  done
  unshare --mount --pid --fork --kill-child bash -c '
    set -e
    bare="$1"; user="$2"; dir="$3"; shift 3
    mount --make-rprivate /
    mount -t proc proc "$bare/proc"
    mount --rbind /dev "$bare/dev"
    mount -t tmpfs tmpfs "$bare/tmp"
    exec chroot --userspec="$user" "$bare" /usr/bin/env -i "${@:2}" /bin/bash -c "cd $dir && $1"
  ' bash "$bare" "$user" "$(home)/denoised" "$1" "${environment[@]}"
}

main() {
  parse_arguments "$@"
  [ "$(id -u)" = 0 ] || fail "must run as root"
  command -v debootstrap >/dev/null || fail "debootstrap is not installed"
  bootstrap
  clone
  local command start status
  for command in "${commands[@]}"; do
    say "running: $command"
    start=$SECONDS status=0
    inside "$command" </dev/null || status=$?
    say "'$command' took $((SECONDS - start)) s, exit status $status"
    [ "$status" = 0 ] || exit "$status"
  done
}

main "$@"
