"""serve.py MODULE PORT THREADS: an OpenStack API, by its WSGI module, on loopback."""

import importlib
import sys

module, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv = [module]  # They take our arguments for theirs.
if module.startswith("neutron"):
    # Without service plugins nobody imports a model that the list of ports needs.
    importlib.import_module("neutron.db.models.port_forwarding")
application = importlib.import_module(module).application
if module.startswith("neutron"):
    importlib.import_module("sqlalchemy.orm").configure_mappers()
importlib.import_module("waitress").serve(
    application, host="127.0.0.1", port=port, threads=threads, ident=None, clear_untrusted_proxy_headers=True
)
