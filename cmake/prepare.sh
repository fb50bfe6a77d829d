# shellcheck shell=sh
# Read by demo.sh and test.sh.

stop() {
  echo "$*" >&2
  exit 1
}

# prepare PACKAGE...: installs those of the Debian packages that are missing. Where that cannot be done it names them,
# and goes on if there is enough to build with.
prepare() {
  missing=
  if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    for package; do
      case $(dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null) in
        *' installed') ;;
        *) missing="$missing $package" ;;
      esac
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -eq 0 ]; then
      install_packages && return
    elif command -v sudo >/dev/null; then
      install_packages sudo && return
    else
      echo "These packages are missing, and it takes root or sudo to install them:$missing"
    fi
  else
    echo "There is no apt-get here. What is needed, by the names of Debian's packages: $*"
  fi
  command -v cmake >/dev/null || stop "Please install CMake 3.25 or newer, and start again."
  command -v ninja >/dev/null || stop "Please install Ninja, and start again."
  command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    stop "Please install a C++20 compiler, g++ 12 or clang++ 14 or newer, and start again."
  echo "CMake, Ninja and a compiler are here: going on."
}

install_packages() {
  echo "Installing with apt-get:$missing"
  apt="$* env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300"
  $apt update </dev/null || echo "apt-get update failed: going on with the package lists that are here."
  # shellcheck disable=SC2086 # both are lists of words
  $apt install -y --no-install-recommends $missing </dev/null || { echo "apt-get could not install:$missing"; return 1; }
}
