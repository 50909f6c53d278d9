# Temporary: everything that results/speed needs, on one host with two H200s, in <= 270 s.
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1
B=benchmarks; began=$SECONDS; w=/tmp/warm; O=$OUT
on() { CUDA_VISIBLE_DEVICES=$1 OUT=$2 timeout "$3" python3 $B/"${@:4}" > "$2.log" 2>&1; }
mkdir -p $w
INF=(--part inference --warm never --only "package" "eager, fp32" "sdpa, bf16, compile" "gelu epilogue" "triton, bf16 weights, compile")
# Kernels that no GPU has seen yet: if one fails, the way before it is taken.
(CUDA_VISIBLE_DEVICES=0 timeout 40 python3 $B/_probe_speed.py attention > $O/p0.log 2>&1 || { echo "ATTENTION FELL BACK"; patch -p1 < $B/_fallback.patch; }) &
(CUDA_VISIBLE_DEVICES=1 timeout 40 python3 $B/_probe_speed.py windows > $O/p1.log 2>&1 || { echo "WINDOWS FELL BACK"; sed -i 's/^TRITON = .*/TRITON = False/' src/adalora_qat/model/tiny_vit.py; }) &
wait
echo "checked $((SECONDS - began))"
# Compilers first, all at once; what is timed now is thrown away.
on 0 $w/a 125 stage_speed.py --only "stage 1" --deadline 115 &
on 1 $w/b 125 stage_speed.py --only "Λ trains" --deadline 115 &
on 1 $w/c 125 litemedsam_training_speed.py --only "decoder, ours" --deadline 115 &
on 0 $w/d 125 litemedsam_training_speed.py --only "stage 1, ours" --deadline 115 &
on 1 $w/e 125 two_gpus.py --runs "one GPU, 16" --deadline 120 &
on 0 $w/f 125 vit_speed.py "${INF[@]}" --deadline 100 &
wait
echo "warm $((SECONDS - began))"
# Then each on its own GPU.
(on 0 $O/v 50 vit_speed.py "${INF[@]}" --deadline 40; on 0 $O/s 70 stage_speed.py --only "stage 1" "Λ trains" --deadline 60) &
(on 1 $O/l 80 litemedsam_training_speed.py --only "plain" "decoder, ours" "stage 1, ours" --deadline 70; on 1 $O/k 40 attention_kernels.py --warm never --deadline 25) &
wait
echo "single $((SECONDS - began))"
OUT=$O/t timeout 115 python3 $B/two_gpus.py --deadline 125 > $O/t.log 2>&1
echo "two $((SECONDS - began))"
python3 - <<'P'
import os, shutil, pathlib
out = pathlib.Path(os.environ["OUT"])
logs = "".join(f"== {p.name}\n{p.read_text()[-6000:]}\n" for p in [*out.glob("*.log"), *pathlib.Path("/tmp/warm").glob("*.log")])
for json in out.glob("*/*.json"):
    shutil.move(json, out / json.name)
for path in out.iterdir():
    if path.is_dir(): shutil.rmtree(path)
    elif path.suffix == ".log": path.unlink()
(out / "all.log").write_text(logs)
P
grep -h "images/s\|images_per_s\|rror" $O/all.log | cut -c1-230 | tail -60
