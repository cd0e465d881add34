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

def put():                               # whole from the moment that the name is there
    draw = random.Random(1)
    for i in range(rounds):
        with open(f"{other}/new", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
            f.write(b"of root")
        begin.wait(60)
        time.sleep(draw.random() * 0.0005)
        os.rename(f"{other}/new", f"{other}/{user}-{i}")
        ended.wait(60)
        os.unlink(f"{other}/{user}-{i}")

def open_it():
    os.chdir(mine)                       # the way there is root's alone
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    draw, answers = random.Random(2), collections.Counter()
    for i in range(rounds):
        begin.wait(60)
        time.sleep(draw.random() * 0.0005)
        try:
            fd = os.open(f"{user}-{i}", os.O_CREAT | os.O_RDWR | more, 0o600)
            st = os.fstat(fd)
            os.close(fd)
            # What it made itself is empty: the other file comes over it by a rename.
            answers["another's" if st.st_uid != user else "not truncated" if more and st.st_size else "OK"] += 1
        except OSError as e:
            answers[errno.errorcode[e.errno]] += 1
        ended.wait(60)
    print(dict(answers))
    sys.exit(not answers["OK"] or bool(set(answers) - {"OK", "EACCES" if user else "OK"}))

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
