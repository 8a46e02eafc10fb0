# Sourced: the mirror that this machine's apt uses, as $mirror.
mirror=$(sed -n -e 's/^URIs: *\([^ ]*debian\/\{0,1\}\)$/\1/p' -e 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*debian\/\{0,1\}\) .*/\2/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1) || true
mirror=${mirror:-http://deb.debian.org/debian}
