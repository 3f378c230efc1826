#!/bin/bash
# A SLURM cluster of one machine with two fake GPUs, for as long as a command runs:
#   unshare --net --pid --fork --mount-proc --kill-child tests/slurm/cluster.sh FOLDER COMMAND...
# Needs root and Debian's slurm-wlm and munge. All files lie in FOLDER; the daemons end with the command.
# Jobs on partition `high` preempt those on `low`, which are queued again after 4 s of grace.
set -eu
folder=$1; shift
mkdir -p "$folder"/{state,spool}
chmod 755 "$folder"
ip link set lo up
ip addr add 127.0.0.2/32 dev lo

head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --force --socket="$folder/munge.sock" --key-file="$folder/munge.key" --log-file="$folder/munge.log" \
    --pid-file="$folder/munge.pid" --seed-file="$folder/munge.seed"

for gpu in 0 1; do [ -e "$folder/fakegpu$gpu" ] || mknod "$folder/fakegpu$gpu" c 1 3; done
cat > "$folder/gres.conf" <<CONF
AutoDetect=off
NodeName=localhost Name=gpu File=$folder/fakegpu[0-1] Flags=nvidia_gpu_env
CONF
cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$folder/munge.sock,cred_expire=3
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=localhost PriorityTier=1 GraceTime=4 Default=YES
PartitionName=high Nodes=localhost PriorityTier=9 PreemptMode=OFF
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd -N localhost
for _ in $(seq 100); do
    [ "$(sinfo -h -p high -o %t 2>/dev/null)" = idle ] && break
    sleep 0.1
done
[ "$(sinfo -h -p high -o %t)" = idle ] || { tail -20 "$folder"/slurm*.log; exit 1; }
"$@"
