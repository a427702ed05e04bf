# shellcheck shell=bash
# Debian packages for the guests, sourced by run and kernel. Nothing is removed or upgraded to get
# one, and no mirror is named here: it is the one of the machine's own sources.

# Prints those of the named packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^.i' ||
            echo "$package"
    done
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# install_packages PACKAGE...: false if they cannot be had without removing others.
install_packages() {
    local options=(install -y -qq --no-install-recommends --no-remove)
    apt_install "${options[@]}" "$@" && return
    apt_install update -qq && apt_install "${options[@]}" "$@" && return
    # Where one qemu package came from backports, the others fit only if they do too.
    local apt result=0
    apt=$(mktemp -d)
    { backports_apt "$apt" && apt_install -c "$apt/with-system" update -qq &&
        apt_install -c "$apt/with-system" "${options[@]}" -t "$backports" "$@"; } || result=$?
    rm -rf "$apt"
    return "$result"
}

# backports_apt DIR: an apt state of its own in DIR that knows the backports of this release, so
# that the machine's sources stay as they are. DIR/alone configures an apt with the backports only,
# DIR/with-system one that has the machine's sources too; either needs an update first. Sets
# `backports` to the suite.
backports_apt() {
    local dir=$1 codename mirror key=/usr/share/keyrings/debian-archive-keyring.gpg
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # apt expands the format.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' "Codename: $codename" 'Component: main' | head -n 1)
    if [ -z "$mirror" ]; then
        echo "guest: apt has no source for the suite '$codename', component main" >&2
        return 1
    fi
    backports=$codename-backports
    mkdir -p "$dir"/{state/lists,cache}/partial
    [ -r "$key" ] && key=" [signed-by=$key]" || key=''
    echo "deb$key $mirror $backports main" >"$dir/sources"
    cat >"$dir/with-system" <<END
Dir::Etc::sourcelist "$dir/sources";
Dir::State::lists "$dir/state/lists";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
END
    { cat "$dir/with-system"; echo 'Dir::Etc::sourceparts "/dev/null";'; } >"$dir/alone"
}
