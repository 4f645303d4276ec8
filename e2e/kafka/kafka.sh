#!/bin/sh
# A real single-node Apache Kafka (KRaft, broker + controller in one process)
# for tests, built from Maven artifacts. Needs: java 17+, mvn.
#
#   kafka.sh install          fetch the jars (once)
#   kafka.sh start [port]     format the data folder if new, start, wait until ready
#   kafka.sh ready [port]     exit 0 when the broker on that port answers
#   kafka.sh stop  [port]     stop it (SIGTERM, then SIGKILL after 20 s)
#   kafka.sh kill9 [port]     end it as a crash would (keeps the data folder)
#   kafka.sh wipe  [port]     stop and delete its data
#   kafka.sh tool CLASS ...   run an admin tool, e.g.
#       tool org.apache.kafka.tools.TopicCommand --bootstrap-server 127.0.0.1:29092 --list
#
# Everything lives below $PENSTOCK_TESTBED (default ~/.cache/penstock/testbed).
# KAFKA_DATA      data folder             (default $PENSTOCK_TESTBED/kafka/run-PORT)
# KAFKA_EXTRA     more broker settings, separated by spaces: "a.b=1 c.d=2"
# KAFKA_HEAP      heap                    (default 384m)
# KAFKA_HOST      the address to listen on and to tell to clients (default 127.0.0.1)
# KAFKA_SECURE    folder of e2e/kafka/certificates.sh: listeners with SASL over TLS beside the plain one, each with a
#                 certificate of its own: port+2 a good one, port+3 one that has expired, port+4 one of another host
# KAFKA_USER      NAME:PASSWORD of a SCRAM-SHA-512 user, made with the data folder
set -eu
here=$(cd "$(dirname "$0")" && pwd)
home=${PENSTOCK_TESTBED:-$HOME/.cache/penstock/testbed}/kafka
libs=$home/libs
host=${KAFKA_HOST:-127.0.0.1}
tool=kafka.sh
. "$here/../server.sh"

# the sub-command's port argument, and what follows from it
place() {
    port=${1:-29092}
    cport=$((port + 1))                       # the controller's listener
    listeners=PLAINTEXT://$host:$port
    if [ -n "${KAFKA_SECURE:-}" ]; then
        listeners=$listeners,SECURE://$host:$((port + 2)),EXPIRED://$host:$((port + 3)),ELSEWHERE://$host:$((port + 4))
    fi
    run=${KAFKA_DATA:-$home/run-$port}
    pidf=$run/pid
    log=$run/server.log
}

ready() {
    alive || return 1
    grep -q 'Kafka Server started' "$log" 2>/dev/null || return 1
    (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null || bash -c "exec 3<>/dev/tcp/$host/$port" 2>/dev/null
}

install() {
    [ -f "$libs/.done" ] && cmp -s "$here/pom.xml" "$libs/.done" && return 0
    command -v java >/dev/null || die "no java: apt-get install -y openjdk-17-jre-headless"
    command -v mvn  >/dev/null || die "no mvn: apt-get install -y maven"
    rm -rf "$libs"; mkdir -p "$libs"
    mvn -B -ntp -q -f "$here/pom.xml" -Dmaven.repo.local="$home/m2" \
        dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$libs"
    cp "$here/pom.xml" "$libs/.done"
}

config() {
    cat > "$run/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$cport
controller.listener.names=CONTROLLER
listeners=$listeners,CONTROLLER://127.0.0.1:$cport
advertised.listeners=$listeners
log.dirs=$run/data
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
transaction.max.timeout.ms=3600000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.segment.bytes=1048576
log.retention.check.interval.ms=5000
log.cleaner.backoff.ms=1000
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=4
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
background.threads=2
num.recovery.threads.per.data.dir=1
EOF
    [ -z "${KAFKA_SECURE:-}" ] || secure >> "$run/server.properties"
    for kv in ${KAFKA_EXTRA:-}; do echo "$kv" >> "$run/server.properties"; done
    cat > "$run/log4j2.properties" <<'EOF'
rootLogger.level=info
rootLogger.appenderRef.c.ref=c
appender.c.type=Console
appender.c.name=c
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
EOF
}

# The settings of the listeners with TLS.
secure() {
    echo "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,EXPIRED:SASL_SSL,ELSEWHERE:SASL_SSL"
    echo "inter.broker.listener.name=PLAINTEXT"
    for name in secure expired elsewhere; do
        cat <<EOF
listener.name.$name.ssl.keystore.type=PEM
listener.name.$name.ssl.keystore.location=$KAFKA_SECURE/$name.pem
listener.name.$name.sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256
listener.name.$name.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.$name.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
EOF
    done
}

launch() {
    config
    scram=""
    [ -z "${KAFKA_USER:-}" ] || scram="SCRAM-SHA-512=[name=${KAFKA_USER%%:*},password=${KAFKA_USER#*:}]"
    if [ ! -f "$run/data/meta.properties" ]; then
        java -Xshare:auto -XX:TieredStopAtLevel=1 -cp "$libs/*" kafka.tools.StorageTool format \
            -t AAAAAAAAQACAAAAAAAAAAQ -c "$run/server.properties" ${scram:+--add-scram "$scram"} >"$run/format.log" 2>&1 ||
            { cat "$run/format.log" >&2; die "format failed"; }
    fi
    : > "$log"
    # setsid: the broker must outlive the shell that started it
    setsid java -Xms128m -Xmx"${KAFKA_HEAP:-384m}" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto \
        -Dlog4j2.configurationFile="$run/log4j2.properties" \
        -cp "$libs/*" kafka.Kafka "$run/server.properties" </dev/null >>"$log" 2>&1 &
}

more() {
    [ "$1" = tool ] || { sed -n '2,23p' "$0"; exit 2; }
    shift
    exec java -Xshare:auto -XX:TieredStopAtLevel=1 -cp "$libs/*" "$@"
}

serve "$@"
