#!/usr/bin/env bash
# One host opens a name with O_CREAT that another host puts a file at in the same moment: the open is of that file then, as
# of any other. Its mode counts, and O_TRUNC truncates it.
source "$(dirname "$0")/lib.sh"
cluster_up host1 host2
M1=$D/mnt/host1; M2=$D/mnt/host2
mkdir -m 1777 "$M1/d"
cat > "$D/same_name.py" <<'PYTHON'
import collections, errno, multiprocessing, os, random, sys, time
mine, other, user, more, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), 400
begin, ended = multiprocessing.Barrier(2), multiprocessing.Barrier(2)
last = multiprocessing.Value("b", 0)
until = time.monotonic() + 80            # of so many rounds fewer, where each takes long

def linked(call):                        # whatever the name is, a host knows no new one while the shared node is away
    away = False
    while True:
        try:
            return call()
        except OSError as e:
            if away and e.errno == errno.ENOENT:   # done before the link broke
                return None
            if e.errno != errno.EHOSTUNREACH:
                raise
            away = True
            time.sleep(0.1)

def put():                               # whole from the moment that the name is there
    draw = random.Random(1)
    for i in range(rounds):
        with linked(lambda: open(f"{other}/new", "wb", opener=lambda path, flags: os.open(path, flags, 0o600))) as f:
            f.write(b"of root")
        last.value = i + 1 == rounds or (i >= 50 and time.monotonic() > until)
        begin.wait(120)
        time.sleep(draw.random() * 0.0005)
        linked(lambda: os.rename(f"{other}/new", f"{other}/{user}-{i}"))
        ended.wait(120)
        linked(lambda: os.unlink(f"{other}/{user}-{i}"))
        if last.value:
            break

def open_it():
    os.chdir(mine)                       # the way there is root's alone
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    draw, answers = random.Random(2), collections.Counter()
    for i in range(rounds):
        begin.wait(120)
        end = last.value                 # until both have ended this round it stays
        time.sleep(draw.random() * 0.0005)
        began = time.monotonic()
        try:
            fd = os.open(f"{user}-{i}", os.O_CREAT | os.O_RDWR | more, 0o600)
            st = os.fstat(fd)
            os.close(fd)
            # What it made itself is empty: the other file comes over it by a rename.
            answers["another's" if st.st_uid != user else "not truncated" if more and st.st_size else "OK"] += 1
        except OSError as e:
            # A tenure that does not move within five seconds is EBUSY, and a new name without the link is out of reach.
            slow = e.errno == errno.EHOSTUNREACH or (e.errno == errno.EBUSY and time.monotonic() - began > 4)
            answers["slow" if slow else errno.errorcode[e.errno]] += 1
        ended.wait(120)
        if end:
            break
    print(dict(answers))
    sys.exit(not answers["OK"] or bool(set(answers) - {"OK", "slow", "EACCES" if user else "OK"}))

workers = [multiprocessing.Process(target=f) for f in (put, open_it)]
for w in workers: w.start()
for w in workers: w.join()
sys.exit(any(w.exitcode for w in workers))
PYTHON
O_TRUNC=512
python3 "$D/same_name.py" "$M1/d" "$M2/d" 1000 0 || die "a user got another's file, or an error that there is no reason for"
say "ok: whoever may not open what another host has put there does not"
python3 "$D/same_name.py" "$M1/d" "$M2/d" 0 "$O_TRUNC" || die "O_TRUNC left what another host had put there"
say "ok: O_TRUNC truncates it"
no_error_lines
