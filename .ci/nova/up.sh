# A real Nova with what it needs: Keystone, Placement, Glance, Neutron (without agents), MariaDB and RabbitMQ, and three hosts of `faults.py`. A part of
# ../beds, whose helpers it uses: each process has its folder and its log, all that they share is in $beds/nova.

hosts=(c1 c2 c3)
nova_processes=(c1 c2 c3 nova-api nova-paged nova-scheduler nova-conductor neutron glance placement keystone queue epmd database)
secret=bed # Of everybody, on loopback.

# What a service finds in its file beyond its own sections.
common() {
    cat <<CONF
[DEFAULT]
use_stderr = true
log_file =
transport_url = $rabbit
CONF
}
database() {
    cat <<CONF
[${2:-database}]
connection = mysql+pymysql://bed:$secret@127.0.0.1:$port_database/$1?charset=utf8
max_pool_size = 4
max_overflow = 8
CONF
}
# As whom a service asks another one, or looks at tokens.
logs_in() {
    cat <<CONF
[$1]
auth_url = $keystone
auth_type = password
username = $2
password = $secret
user_domain_name = Default
project_domain_name = Default
project_name = service
region_name = RegionOne
CONF
}
looks_at_tokens() {
    logs_in keystone_authtoken "$1"
    cat <<CONF
www_authenticate_uri = $keystone
interface = public
service_token_roles = service
service_token_roles_required = true
CONF
}

configure() {
    mkdir -p "$beds"/nova/{fernet,credential,images,staging,tasks,neutron,lock,none,rabbit}
    cd "$beds/nova"
    {
        common
        database keystone
        cat <<CONF
[fernet_tokens]
key_repository = $PWD/fernet
[credential]
key_repository = $PWD/credential
[cache]
enabled = true
backend = dogpile.cache.memory
[identity]
password_hash_rounds = 4
CONF
    } >keystone.conf
    {
        echo '[DEFAULT]'
        database placement placement_database
        looks_at_tokens placement
    } >placement.conf
    {
        common
        cat <<CONF
enabled_backends = fs:file
node_staging_uri = file://$PWD/staging
[glance_store]
default_backend = fs
[fs]
filesystem_store_datadir = $PWD/images
[os_glance_staging_store]
filesystem_store_datadir = $PWD/staging
[os_glance_tasks_store]
filesystem_store_datadir = $PWD/tasks
[paste_deploy]
flavor = keystone
config_file = $venv/etc/glance/glance-api-paste.ini
[oslo_policy]
policy_dirs = $PWD/none
[oslo_concurrency]
lock_path = $PWD/lock
CONF
        database glance
        looks_at_tokens glance
    } >glance-api.conf
    {
        common
        cat <<CONF
core_plugin = ml2
service_plugins =
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false
api_paste_config = $venv/etc/neutron/api-paste.ini
state_path = $PWD/neutron
[ml2]
type_drivers = flat,local
tenant_network_types = local
mechanism_drivers =
extension_drivers =
[oslo_concurrency]
lock_path = $PWD/lock
CONF
        database neutron
        looks_at_tokens neutron
    } >neutron.conf
    # Nova's API looks for this one beside its own.
    cp "$venv/etc/nova/api-paste.ini" .
    local host
    for host in control "${hosts[@]}"; do
        mkdir -p "hosts/$host/lock"
        {
            common
            cat <<CONF
host = $host
my_ip = 127.0.0.1
state_path = $PWD/hosts/$host
compute_driver = faults.Driver
use_cow_images = false
force_raw_images = false
# A host is believed to be away only after long: it shares two cores with everything else, and no test waits for it.
report_interval = 5
service_down_time = 60
update_resources_interval = 15
sync_power_state_interval = 60
running_deleted_instance_poll_interval = 60
default_schedule_zone =
[api]
auth_strategy = keystone
[wsgi]
api_paste_config = $PWD/api-paste.ini
[conductor]
workers = 1
[scheduler]
workers = 1
max_attempts = 2
[filter_scheduler]
enabled_filters = ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter,ServerGroupAntiAffinityFilter,ServerGroupAffinityFilter
[vnc]
enabled = false
[oslo_concurrency]
lock_path = $PWD/hosts/$host/lock
[glance]
endpoint_override = http://127.0.0.1:$port_glance
[cinder]
catalog_info = volumev3::publicURL
CONF
            logs_in neutron nova
            echo 'valid_interfaces = public'
            logs_in placement nova
            echo 'valid_interfaces = public'
            logs_in service_user nova
            echo 'send_service_user_token = true'
            looks_at_tokens nova
            # Its hosts ask its conductor.
            if [ "$host" = control ]; then
                database nova_api api_database
                database nova
            fi
        } >"nova-$host.conf"
    done
    mv nova-control.conf nova.conf
    # And once more, for whoever has to read its lists in pages of two.
    mkdir paged
    cp api-paste.ini paged
    sed 's/^\[api\]$/&\nmax_limit = 2/' nova.conf >paged/nova.conf
    echo 'clouds:' >clouds.yaml
    chmod 600 clouds.yaml
    local cloud user
    # An administrator's, and that of somebody without any right beyond their own project.
    for cloud in real:admin real-demo:demo; do
        user=${cloud#*:}
        cat >>clouds.yaml <<CONF
  ${cloud%:*}:
    region_name: RegionOne
    auth: { auth_url: "$keystone", username: $user, password: $secret, project_name: $user, user_domain_name: Default, project_domain_name: Default }
CONF
    done
    cat >rabbitmq.conf <<CONF
default_user = bed
default_pass = $secret
loopback_users = none
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
CONF
    echo '[].' >rabbitmq.plugins
    : >rabbitmq.environment
    cd - >/dev/null
}

start_database() {
    local data=$beds/database/data name
    prepare database mariadb-install-db --no-defaults --user=root --datadir="$data" --auth-root-authentication-method=normal --skip-test-db
    {
        echo "ALTER USER root@localhost IDENTIFIED BY '$secret';"
        echo "CREATE USER bed@'127.0.0.1' IDENTIFIED BY '$secret';"
        echo "GRANT ALL ON *.* TO bed@'127.0.0.1' WITH GRANT OPTION;"
        for name in keystone placement glance neutron nova_api nova nova_cell0; do echo "CREATE DATABASE $name CHARACTER SET utf8mb3;"; done
    } >"$beds/database/init.sql"
    # What it keeps is gone with the bed: nothing is flushed, written twice or logged.
    start database mariadbd --no-defaults --user=root --datadir="$data" --socket="$beds/database/socket" --pid-file="$beds/database/pid.own" \
        --init-file="$beds/database/init.sql" --bind-address=127.0.0.1 --port="$port_database" --skip-name-resolve --max-connections=300 \
        --character-set-server=utf8mb3 --performance-schema=OFF --innodb-buffer-pool-size=96M --innodb-log-file-size=32M --skip-log-bin \
        --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0
}

start_queue() {
    # Its own, or Erlang would start one that nobody ends.
    start epmd epmd -port "$port_epmd" -address 127.0.0.1
    listens epmd "$port_epmd"
    start queue env HOME="$beds/nova/rabbit" LANG=C.UTF-8 ERL_EPMD_PORT="$port_epmd" RABBITMQ_BASE="$beds/nova/rabbit" \
        RABBITMQ_MNESIA_BASE="$beds/nova/rabbit/mnesia" RABBITMQ_LOG_BASE="$beds/nova/rabbit/log" RABBITMQ_PID_FILE="$beds/nova/rabbit/pid" \
        RABBITMQ_NODENAME=bed@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$port_queue" RABBITMQ_DIST_PORT="$port_erlang" \
        RABBITMQ_CONFIG_FILE="$beds/nova/rabbitmq" RABBITMQ_CONF_ENV_FILE="$beds/nova/rabbitmq.environment" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$beds/nova/rabbitmq.plugins" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}' \
        "$(echo /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server)"
}

# An API of Python's WSGI: its name, port and threads, its module, and what it finds its files by.
serve() {
    local name=$1 port=$2 threads=$3 module=$4
    shift 4
    start "$name" env "$@" "$venv/bin/python" "$PWD/.ci/nova/serve.py" "$module" "$port" "$threads"
}

# Each brings its schema up to date and then starts.
begin_keystone() {
    local manage=("$venv/bin/keystone-manage" --config-file "$conf/keystone.conf")
    prepare keystone "${manage[@]}" db_sync
    prepare keystone "${manage[@]}" fernet_setup --keystone-user root --keystone-group root
    prepare keystone "${manage[@]}" credential_setup --keystone-user root --keystone-group root
    prepare keystone "${manage[@]}" bootstrap --bootstrap-password "$secret" --bootstrap-region-id RegionOne --bootstrap-public-url "$keystone"
    serve keystone "$port_keystone" 6 keystone.wsgi.api OS_KEYSTONE_CONFIG_FILES="$conf/keystone.conf"
    listens keystone "$port_keystone"
    prepare keystone "$venv/bin/python" .ci/nova/cloud.py catalog "$keystone" "$secret" "placement=placement=http://127.0.0.1:$port_placement" \
        "nova=compute=http://127.0.0.1:$port_nova/v2.1" "glance=image=http://127.0.0.1:$port_glance" "neutron=network=http://127.0.0.1:$port_neutron"
    prepare placement "$venv/bin/placement-manage" --config-file "$conf/placement.conf" db sync
    serve placement "$port_placement" 4 placement.wsgi.api OS_PLACEMENT_CONFIG_DIR="$conf"
    prepare glance "$venv/bin/glance-manage" --config-file "$conf/glance-api.conf" db_sync
    serve glance "$port_glance" 4 glance.wsgi.api OS_GLANCE_CONFIG_FILES="$conf/glance-api.conf" OS_GLANCE_CONFIG_DIR="$conf"
}
begin_neutron() {
    export OS_NEUTRON_CONFIG_DIR=$conf OS_NEUTRON_CONFIG_FILES=neutron.conf
    prepare neutron "$venv/bin/neutron-db-manage" --config-file "$conf/neutron.conf" upgrade heads
    serve neutron "$port_neutron" 4 neutron.wsgi.api
}
begin_nova() {
    local db=mysql+pymysql://bed:$secret@127.0.0.1:$port_database
    prepare nova-api "${nova_manage[@]}" api_db sync
    prepare nova-api "${nova_manage[@]}" cell_v2 map_cell0 --database_connection "$db/nova_cell0?charset=utf8"
    prepare nova-api "${nova_manage[@]}" cell_v2 create_cell --name cell1 --transport-url "$rabbit" --database_connection "$db/nova?charset=utf8"
    prepare nova-api "${nova_manage[@]}" db sync
}

up_nova() {
    local conf=$beds/nova keystone rabbit host name
    local port_database port_queue port_erlang port_epmd port_keystone port_placement port_nova port_paged port_glance port_neutron
    read -r port_database port_queue port_erlang port_epmd port_keystone port_placement port_nova port_paged port_glance port_neutron < <(ports 10)
    keystone=http://127.0.0.1:$port_keystone/v3
    rabbit=rabbit://bed:$secret@127.0.0.1:$port_queue/
    local nova_manage=("$venv/bin/nova-manage" --config-file "$conf/nova.conf")
    export PYTHONWARNINGS=ignore
    for name in "${nova_processes[@]}"; do mkdir "$beds/$name"; done
    configure
    # Nova takes drivers from there alone.
    cp .ci/nova/faults.py "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nova/virt/"
    start_database
    start_queue
    listens database "$port_database"
    # Two cores, three chains.
    begin_keystone &
    local of_keystone=$!
    begin_neutron &
    local of_neutron=$!
    begin_nova &
    wait $!
    wait $of_keystone
    listens queue "$port_queue"
    start nova-conductor "$venv/bin/nova-conductor" --config-file "$conf/nova.conf"
    start nova-scheduler "$venv/bin/nova-scheduler" --config-file "$conf/nova.conf"
    serve nova-api "$port_nova" 8 nova.wsgi.osapi_compute OS_NOVA_CONFIG_DIR="$conf"
    serve nova-paged "$port_paged" 2 nova.wsgi.osapi_compute OS_NOVA_CONFIG_DIR="$conf/paged"
    listens placement "$port_placement"
    for host in "${hosts[@]}"; do
        start "$host" env BED_HOST="$conf/hosts/$host" "$venv/bin/nova-compute" --config-file "$conf/nova-$host.conf"
    done
    wait $of_neutron
    listens neutron "$port_neutron"
    listens glance "$port_glance"
    listens nova-api "$port_nova"
    listens nova-paged "$port_paged"
    prepare nova-api "$venv/bin/python" .ci/nova/cloud.py ready "$keystone" "$secret" "${hosts[@]}"
    prepare nova-api "${nova_manage[@]}" cell_v2 discover_hosts
    echo "export TURNAROUND_BED_CLOUDS=$conf/clouds.yaml TURNAROUND_BED_CLOUD=real TURNAROUND_BED_FAULTS=$conf/hosts"
    echo "export TURNAROUND_BED_PAGED_NOVA=http://127.0.0.1:$port_paged/v2.1"
}
