"""nova.virt.faults.Driver: Nova's own fake driver, whose guests outlive it, and that fails on demand.

$BED_HOST is the folder of one host. `faults.json` in it is read at every call, such as {"check": 1, "live_seconds": 30}: how many times a call fails, -1 for
always, or how long a live migration takes. `guests.json` is what runs there.
"""

import json
import os
import time

from nova import exception
from nova.virt import fake


class Driver(fake.FakeDriverWithoutFakeNodes):
    vcpus, memory_mb, local_gb = 1000, 800000, 600000
    aborted = forced = False

    def init_host(self, host):
        super().init_host(host)
        for uuid, (name, state) in self._read("guests").items():
            self.instances[uuid] = fake.FakeInstance(name, state, uuid)

    def check_can_live_migrate_destination(self, *args, **kwargs):
        if self._fails("check"):
            raise exception.MigrationPreCheckError(reason="injected fault: check")
        return super().check_can_live_migrate_destination(*args, **kwargs)

    def pre_live_migration(self, *args, **kwargs):
        self._fail("pre")
        return super().pre_live_migration(*args, **kwargs)

    def live_migration(self, context, instance, dest, post_method, recover_method, block_migration=False, migrate_data=None):
        self.aborted = self.forced = False
        ends = time.monotonic() + self._read("faults").get("live_seconds", 0)
        while time.monotonic() < ends and not self.aborted and not self.forced:
            time.sleep(0.1)
        if self.aborted:
            recover_method(context, instance, dest, migrate_data, migration_status="cancelled")
        elif self._fails("live"):
            recover_method(context, instance, dest, migrate_data)
        else:
            post_method(context, instance, dest, block_migration, migrate_data)

    def live_migration_abort(self, instance):
        self.aborted = True

    def live_migration_force_complete(self, instance):
        self.forced = True

    def post_live_migration(self, context, instance, block_device_info, migrate_data=None):
        self.instances.pop(instance.uuid, None)
        self._keep()

    def spawn(self, *args, **kwargs):
        self._fail("spawn")
        super().spawn(*args, **kwargs)
        self._keep()

    def destroy(self, *args, **kwargs):
        super().destroy(*args, **kwargs)
        self._keep()

    def power_off(self, *args, **kwargs):
        super().power_off(*args, **kwargs)
        self._keep()

    def power_on(self, *args, **kwargs):
        super().power_on(*args, **kwargs)
        self._keep()

    def migrate_disk_and_power_off(self, *args, **kwargs):
        self._fail("cold")
        return super().migrate_disk_and_power_off(*args, **kwargs)

    def finish_migration(self, *args, **kwargs):
        self._fail("finish")
        return super().finish_migration(*args, **kwargs)

    def _fail(self, what):
        if self._fails(what):
            raise exception.NovaException(f"injected fault: {what}")

    def _fails(self, what):
        faults = self._read("faults")
        left = faults.get(what, 0)
        if left > 0:
            self._write("faults", faults | {what: left - 1})
        return left != 0

    def _keep(self):
        self._write("guests", {uuid: [guest.name, guest.state] for uuid, guest in self.instances.items()})

    def _read(self, name):
        try:
            with open(f"{os.environ['BED_HOST']}/{name}.json") as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def _write(self, name, what):
        path = f"{os.environ['BED_HOST']}/{name}.json"
        # Moved into place: a test may write it at the same time, and it is read elsewhere.
        with open(path + ".written", "w") as file:
            json.dump(what, file)
        os.replace(path + ".written", path)
