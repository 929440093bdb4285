// Computes multi-scale deformable attention: softmax, locations and bilinear sampling in one
// kernel.
//
// It computes rvos_deploy.networks.pan2024.modules.deformable_attention.ms_deform_attn (Zhu et al.
// 2021):
//
//   value             [B,S,heads,D]               T: fp32, fp16 or bf16
//   level_shapes      int32 [levels,2]            (height, width); the areas add up to S
//   reference_points  fp32 [Q,2]                  (x, y) in 0..1
//   sampling_offsets  [B,Q,heads,levels,points,2] O: T or fp32; (x, y) in pixels of the level
//   attention_logits  [B,Q,heads,levels*points]   L: T or fp32
//   output            [B,Q,heads*D]               T
//
// Heads, D, levels and points are constants of the compilation, so nothing is divided and no loop
// remains: ptxas moves the loads of values ahead of their use as far as the registers allow.
//
// Launch: block (threads of a row, queries), grid (ceil(Q / queries), heads, B). A row is a query
// and a head; each of its threads owns RVOS_VECTORS times 16 bytes of the head's channels. A block
// holds neighbouring queries of one head, which read neighbouring pixels, so that the L1 cache
// serves more of the reads than in a block with several heads.
//
// Softmax and taps: the threads of a row form groups of a power of two. Each thread of a group
// reads every group-th logit and offset once, keeps its exponentials in registers, and computes the
// taps of its own points. The group exchanges them by shuffles: 5 words a point, instead of some 65
// instructions to compute its taps. Groups lie within a warp, and every thread of a warp takes
// part: threads beyond the last query repeat it, and store nothing.
//
// The compilers must not contract (--fmad=false, -ffp-contract=off): the source writes each fmaf,
// so that the device and the host build round in the same places. Only exp2f may differ.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef RVOS_HOST
// host.cpp reads the sizes at run time, so one library serves all of them.
#define RVOS_CONSTANT const
#define RVOS_ROOM(count) 128
#else
#define RVOS_CONSTANT constexpr
#define RVOS_ROOM(count) count
#endif

namespace rvos {

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float to_float(float number) { return number; }
__device__ inline float to_float(__half number) { return __half2float(number); }
__device__ inline float to_float(__nv_bfloat16 number) { return __bfloat162float(number); }

__device__ inline float2 widen(__half2 pair) { return __half22float2(pair); }
// One instruction a number; __bfloat1622float2 takes one and a half to two.
__device__ inline float2 widen(__nv_bfloat162 pair) {
  const unsigned bits = *reinterpret_cast<const unsigned*>(&pair);
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}

// Loads two neighbours at once: the x and the y of an offset.
__device__ inline float2 load_pair(const float* at) { return *reinterpret_cast<const float2*>(at); }
__device__ inline float2 load_pair(const __half* at) {
  return widen(*reinterpret_cast<const __half2*>(at));
}
__device__ inline float2 load_pair(const __nv_bfloat16* at) {
  return widen(*reinterpret_cast<const __nv_bfloat162*>(at));
}
__device__ inline int2 load_pair(const int* at) { return *reinterpret_cast<const int2*>(at); }

// Converts 16 bytes of channels, which stay in T until they are used.
template <typename T>
struct Channels;

template <>
struct Channels<float> {
  static constexpr int kCount = 4;
  __device__ static void unpack(uint4 raw, float* to) {
    const float* numbers = reinterpret_cast<const float*>(&raw);
    for (int i = 0; i < kCount; ++i) to[i] = numbers[i];
  }
  __device__ static uint4 pack(const float* from) { return *reinterpret_cast<const uint4*>(from); }
};

__device__ inline void narrow(float x, float y, __half2* to) { *to = __floats2half2_rn(x, y); }
__device__ inline void narrow(float x, float y, __nv_bfloat162* to) {
  *to = __floats2bfloat162_rn(x, y);
}

template <typename Pair>
struct PairedChannels {
  static constexpr int kCount = 8;
  __device__ static void unpack(uint4 raw, float* to) {
    const Pair* pairs = reinterpret_cast<const Pair*>(&raw);
    for (int i = 0; i < kCount / 2; ++i) {
      const float2 pair = widen(pairs[i]);
      to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    }
  }
  __device__ static uint4 pack(const float* from) {
    uint4 raw;
    Pair* pairs = reinterpret_cast<Pair*>(&raw);
    for (int i = 0; i < kCount / 2; ++i) narrow(from[2 * i], from[2 * i + 1], &pairs[i]);
    return raw;
  }
};

template <>
struct Channels<__half> : PairedChannels<__half2> {};

template <>
struct Channels<__nv_bfloat16> : PairedChannels<__nv_bfloat162> {};

// A reference point on one axis of one level, in pixels: whole + rest, where pixel centres are
// whole numbers. One fp32 for reference * size + offset is off by up to 3e-5 of a pixel at 512,
// which shows beside the rounding of an fp16 output. With whole pixels apart the error is 1.5e-7 at
// any size below 2^24.
struct Origin {
  float whole, rest;
};

__device__ inline Origin find_origin(float reference, int size) {
  const float edge = reference * static_cast<float>(size);
  const float lost = fmaf(reference, static_cast<float>(size), -edge);  // exact: edge's rounding
  const float whole = floorf(edge);
  return {whole, ((edge - whole) - 0.5f) + lost};
}

// The two pixels around a location on one axis, and their shares, which are 0 outside the map.
struct AxisTaps {
  int first;
  bool near_inside, far_inside;
  float near_share, far_share;
};

__device__ inline AxisTaps find_axis_taps(Origin origin, float offset, int size) {
  const float whole = floorf(offset);
  const float rest = origin.rest + (offset - whole);
  const float carry = floorf(rest);
  const float far_share = rest - carry;
  // The clamp comes before the conversion, which is undefined on the host beyond int. At -2
  // and at size + 1 both pixels are outside. NaN becomes -2: fmaxf returns its other argument.
  const float first = (origin.whole + whole) + carry;
  const int column = static_cast<int>(fminf(fmaxf(first, -2.0f), static_cast<float>(size) + 1.0f));
  const bool near_inside = column >= 0 && column < size;
  const bool far_inside = column + 1 >= 0 && column + 1 < size;
  return {column, near_inside, far_inside, near_inside ? 1.0f - far_share : 0.0f,
          far_inside ? far_share : 0.0f};
}

// How the samples of a row are divided among its threads.
struct Split {
  int samples;  // levels * points
  int group;    // threads that exchange taps: a power of two, at most a warp
  int own;      // samples of a thread at most: thread i of a group has i, i + group, ...
};

__device__ constexpr Split split_samples(int samples, int row_threads) {
  const int power = row_threads & -row_threads;
  const int group = power < 32 ? power : 32;
  return {samples, group, (samples + group - 1) / group};
}

constexpr unsigned kWarp = 0xffffffffu;

// Replaces a thread's logits by their exponentials, relative to the row's largest logit, and
// returns the sum over the row.
template <typename L>
__device__ inline float exponentiate(const L* __restrict__ logits, Split split, int lane,
                                     float* weights) {
  const float lowest = __int_as_float(0xff800000);  // minus infinity
  float maximum = lowest, total = 0.0f;
#pragma unroll
  for (int i = 0; i < split.own; ++i) {
    const int sample = i * split.group + lane;
    weights[i] = sample < split.samples ? to_float(logits[sample]) : lowest;
    maximum = fmaxf(maximum, weights[i]);
  }
#pragma unroll
  for (int step = 1; step < split.group; step *= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(kWarp, maximum, step));
  }
#pragma unroll
  for (int i = 0; i < split.own; ++i) {
    weights[i] = exp2f((weights[i] - maximum) * kLog2E);
    total += weights[i];
  }
#pragma unroll
  for (int step = 1; step < split.group; step *= 2) total += __shfl_xor_sync(kWarp, total, step);
  return total;
}

// The four pixels of a sampling point: their shares, and the upper left one's distance in bytes
// from the batch entry's first. Shares are not negative; their sign bit says that the pixel is
// outside.
struct Taps {
  int first;
  float share[4];
};

__device__ inline Taps find_taps(const int* __restrict__ level_shapes, int level, int levels,
                                 int pixel_bytes, float2 reference, float2 offset, float weight) {
  // Unsigned, because places far outside may overflow; nothing is read there.
  unsigned start = 0;
#pragma unroll
  for (int below = 0; below < levels - 1; ++below) {
    const int2 shape = load_pair(level_shapes + 2 * below);
    start += below < level ? static_cast<unsigned>(shape.x) * shape.y : 0u;
  }
  const int2 shape = load_pair(level_shapes + 2 * level);
  const AxisTaps x = find_axis_taps(find_origin(reference.x, shape.y), offset.x, shape.y);
  const AxisTaps y = find_axis_taps(find_origin(reference.y, shape.x), offset.y, shape.x);
  start += static_cast<unsigned>(y.first) * shape.y + x.first;
  Taps taps;
  taps.first = static_cast<int>(start * pixel_bytes);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const bool right = corner & 1, below = corner & 2;
    const bool inside = (right ? x.far_inside : x.near_inside) &&
                        (below ? y.far_inside : y.near_inside);
    const float share = (weight * (below ? y.far_share : y.near_share)) *
                        (right ? x.far_share : x.near_share);
    taps.share[corner] = inside ? share : -0.0f;
  }
  return taps;
}

__device__ inline Taps receive_taps(const Taps& own, int from, int group) {
  if (group == 1) return own;
  Taps taps;
  taps.first = __shfl_sync(kWarp, own.first, from, group);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    taps.share[corner] = __shfl_sync(kWarp, own.share[corner], from, group);
  }
  return taps;
}

// Pixels outside are neither read nor counted, so no NaN or infinity can leak from them.
template <typename T>
__device__ inline void add_point(const T* __restrict__ entry, const Taps& taps, int right_bytes,
                                 int down_bytes, int vector_stride, float* sum) {
  uint4 raw[4][RVOS_VECTORS];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const long long row = taps.first + (corner & 2 ? down_bytes : 0);
    const char* pixel = reinterpret_cast<const char*>(entry) + row + (corner & 1 ? right_bytes : 0);
    const bool inside = __float_as_int(taps.share[corner]) >= 0;
#pragma unroll
    for (int vector = 0; vector < RVOS_VECTORS; ++vector) {
      const T* at = reinterpret_cast<const T*>(pixel) + vector * vector_stride;
      const uint4 nothing = {0u, 0u, 0u, 0u};
      raw[corner][vector] = inside ? *reinterpret_cast<const uint4*>(at) : nothing;
    }
  }
  constexpr int kCount = Channels<T>::kCount;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
    for (int vector = 0; vector < RVOS_VECTORS; ++vector) {
      float channels[kCount];
      Channels<T>::unpack(raw[corner][vector], channels);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        float* to = sum + vector * kCount + i;
        *to = fmaf(taps.share[corner], channels[i], *to);
      }
    }
  }
}

template <typename T, typename O, typename L>
__device__ inline void ms_deform_attn(const T* __restrict__ value,
                                      const int* __restrict__ level_shapes,
                                      const float* __restrict__ reference_points,
                                      const O* __restrict__ sampling_offsets,
                                      const L* __restrict__ attention_logits, int pixels,
                                      int queries, T* __restrict__ output) {
  constexpr int kCount = Channels<T>::kCount;
  RVOS_CONSTANT int heads = RVOS_HEADS, head_width = RVOS_HEAD_WIDTH;
  RVOS_CONSTANT int levels = RVOS_LEVELS, points = RVOS_POINTS;
  RVOS_CONSTANT int row_threads = head_width / (kCount * RVOS_VECTORS);
  RVOS_CONSTANT int vector_stride = row_threads * kCount;
  RVOS_CONSTANT int pixel_bytes = heads * head_width * static_cast<int>(sizeof(T));
  RVOS_CONSTANT Split split = split_samples(levels * points, row_threads);

  const int place = blockIdx.x * blockDim.y + threadIdx.y;
  const int query = min(place, queries - 1), head = blockIdx.y;
  const int lane = threadIdx.x % split.group, channel = threadIdx.x * kCount;
  const long long batch = blockIdx.z;
  const long long row = (batch * queries + query) * heads + head;
  const T* entry = value + (batch * pixels * heads + head) * head_width + channel;
  const O* offsets = sampling_offsets + row * split.samples * 2;
  const float2 reference = load_pair(reference_points + 2ll * query);

  float weights[RVOS_ROOM(split.own)];
  const float total = exponentiate(attention_logits + row * split.samples, split, lane, weights);
  float sum[kCount * RVOS_VECTORS] = {};
  Taps own = {};
  int down_bytes = 0;
#pragma unroll
  for (int sample = 0; sample < split.samples; ++sample) {
    const int level = sample / points, from = sample % split.group;
    if (from == 0) {  // the next point of every thread
      // One level where the points of a level are whole groups, which the compiler knows.
      const int mine = min(sample + lane, split.samples - 1);
      const int at = points % split.group == 0 ? level : mine / points;
      own = find_taps(level_shapes, at, levels, pixel_bytes, reference,
                      load_pair(offsets + 2 * mine), weights[sample / split.group]);
    }
    if (sample % points == 0) down_bytes = load_pair(level_shapes + 2 * level).y * pixel_bytes;
    add_point(entry, receive_taps(own, from, split.group), pixel_bytes, down_bytes, vector_stride,
              sum);
  }
  if (place >= queries) return;
  const float scale = 1.0f / total;
#pragma unroll
  for (int vector = 0; vector < RVOS_VECTORS; ++vector) {
    float* channels = sum + vector * kCount;
#pragma unroll
    for (int i = 0; i < kCount; ++i) channels[i] *= scale;
    T* to = output + row * head_width + channel + vector * vector_stride;
    // A plain assignment becomes four stores.
    __stwb(reinterpret_cast<uint4*>(to), Channels<T>::pack(channels));
  }
}

}  // namespace rvos

#ifndef RVOS_HOST
// TensorRT passes the inputs, then the scalars, then the output.
extern "C" __global__ void __launch_bounds__(RVOS_LAUNCH_BOUNDS) rvos_ms_deform_attn(
    const RVOS_VALUE* __restrict__ value, const int* __restrict__ level_shapes,
    const float* __restrict__ reference_points, const RVOS_OFFSETS* __restrict__ sampling_offsets,
    const RVOS_LOGITS* __restrict__ attention_logits, int pixels, int queries,
    RVOS_VALUE* __restrict__ output) {
  rvos::ms_deform_attn(value, level_shapes, reference_points, sampling_offsets, attention_logits,
                       pixels, queries, output);
}
#endif
