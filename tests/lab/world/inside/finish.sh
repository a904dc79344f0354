#!/bin/bash
# Runs once, in the image's tree, while it is built: the two Python environments, settings, services.
set -euo pipefail
wheels=/tmp/wheels

# environment PLACE REQUIREMENT…: a virtual environment from the wheels alone
environment() {
    local place=$1
    shift
    python3 -m venv "$place"
    "$place/bin/pip" -q install --no-index --find-links="$wheels/${place##*/}" -U pip setuptools wheel
    "$place/bin/pip" -q install --no-index --find-links="$wheels/${place##*/}" "$@"
}
environment /opt/tether -r "$wheels/tether/requirements"
environment /opt/cinder -r "$wheels/cinder/requirements"
ln -s /opt/cinder/bin/cinder-manage /usr/local/bin/

# Cinder's tables, so that a lab need not make them.
mkdir -p /var/lib/cinder/locks /var/lib/tether/locks /var/log/cinder /etc/target
printf '[database]\nconnection = sqlite:////var/lib/cinder/cinder.sqlite\n' >/tmp/cinder.conf
PYTHONWARNINGS=ignore cinder-manage --config-file /tmp/cinder.conf --log-file /tmp/cinder.log db sync
rm -f /tmp/cinder.conf /tmp/cinder.log

# iscsid's defaults wait minutes for a target that is not there.
sed -i -e 's/^#\?\s*node.session.initial_login_retry_max.*/node.session.initial_login_retry_max = 1/' \
    -e 's/^#\?\s*node.conn\[0\].timeo.login_timeout.*/node.conn[0].timeo.login_timeout = 5/' \
    -e 's/^#\?\s*node.session.timeo.replacement_timeout.*/node.session.timeo.replacement_timeout = 10/' \
    -e 's/^#\?\s*node.startup.*/node.startup = manual/' /etc/iscsi/iscsid.conf
chmod 600 /etc/iscsi/initiatorname.iscsi
# Guests are emulated: there is no confinement to set up for each of them.
sed -i 's/^#\?security_driver = .*/security_driver = "none"/' /etc/libvirt/qemu.conf

modules=$(basename "$(find /usr/lib/uml/modules -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")
ln -sfn "/usr/lib/uml/modules/$modules" "/lib/modules/$modules"
depmod "$modules"

systemctl -q enable systemd-networkd ssh iscsid multipathd libvirtd
for unit in libvirt-guests open-iscsi rtslib-fb-targetctl nvmf-autoconnect nvmefc-boot-connections rpcbind \
    nfs-client.target nfs-server nfs-blkmap ceph-crash; do
    systemctl -q disable "$unit" 2>/dev/null || true
done
systemctl -q mask apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer e2scrub_reap fstrim.timer \
    logrotate.timer dpkg-db-backup.timer systemd-timesyncd systemd-networkd-wait-online getty@tty1 2>/dev/null || true
passwd -q -d root
chmod 600 /etc/ssh/authorized_keys
update-initramfs -u -k "$(basename "$(readlink -f /vmlinuz)" | sed s/vmlinuz-//)" >/dev/null 2>&1

mkdir -p /opt/guests/tether
# The guests' kernel and RAM disk; the sources of this are beside the wheels.
PYTHONPATH=$wheels/source XDG_CACHE_HOME=/opt/guests PYTHONDONTWRITEBYTECODE=1 \
    python3 -c 'from tests.live.world.guest_image import guest_image; guest_image()'
