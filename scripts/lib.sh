# What the scripts share. Sourced after `set -euo pipefail`; goes to the root of the repository.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

say() {
    printf '\n==> %s\n' "$*"
}

# Runs a command as root. Without sudo it cannot, and says what somebody who can would have to type.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        echo "+ sudo $*" >&2
        sudo "$@"
    else
        echo "This needs root and there is no sudo here. Run it yourself, then start again: $*" >&2
        return 1
    fi
}

# A program, also where distributions keep servers, which is outside of a plain user's PATH.
installed() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin:/usr/libexec" command -v "$1" >/dev/null
}

# Debian starts and enables what it installs. Only the programs are wanted here: until the installation ends, nothing starts,
# and the services that it brought are disabled.
apt_install() {
    local policy=/usr/sbin/policy-rc.d ours='' status=0 service
    as_root apt-get update -qq
    if [ ! -e $policy ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || status=$?
    [ -z "$ours" ] || as_root rm $policy
    if [ -d /run/systemd/system ]; then
        for service in "$@"; do
            case $service in *-server) as_root systemctl disable --quiet "${service/mariadb-server/mariadb}" ;; esac
        done
    fi
    return $status
}

# install_packages WHY PACKAGE...: with the system's package manager. redis, mariadb, python and chromium (with its driver)
# are called what they are called there.
install_packages() {
    local why=$1 manager package names=()
    shift
    for manager in apt-get dnf apk brew none; do
        command -v $manager >/dev/null && break
    done
    for package in "$@"; do
        case $manager:$package in
            apt-get:redis) names+=(redis-server) ;;
            apt-get:mariadb | dnf:mariadb) names+=(mariadb-server) ;;
            apt-get:python) names+=(python3 python3-venv) ;;
            dnf:python | apk:python) names+=(python3) ;;
            apt-get:chromium) names+=(chromium chromium-driver) ;;
            dnf:chromium | brew:chromium) names+=(chromium chromedriver) ;;
            apk:chromium) names+=(chromium chromium-chromedriver) ;;
            *) names+=("$package") ;;
        esac
    done
    say "Installing ${names[*]}: $why"
    case $manager in
        apt-get) apt_install "${names[@]}" ;;
        dnf) as_root dnf install -y -q "${names[@]}" ;;
        apk) as_root apk add --quiet "${names[@]}" ;;
        brew) brew install --quiet "${names[@]}" ;;
        *)
            echo "There is no apt-get, dnf, apk or brew here: install that in this system's way, then start again." >&2
            return 1
            ;;
    esac
}

# python_env NAME REQUIREMENTS: a virtual environment target/NAME, made again when REQUIREMENTS changes.
python_env() {
    local folder=target/$1 requirements=$2
    if ! cmp -s "$requirements" "$folder/requirements.txt"; then
        say "Installing $requirements into $folder"
        rm -rf "$folder"
        mkdir -p target
        python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
        cp "$requirements" "$folder/requirements.txt"
    fi
}
