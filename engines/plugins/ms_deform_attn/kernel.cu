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
// Launch: block (D / channels in 16 bytes, rows), grid (ceil(Q * heads / rows), B). The x threads
// of a block share a row, that is one (query, head), and each thread owns 16 bytes of its channels.
// So one PTX supports every head width of whole 16-byte vectors, without a division.
//
// Softmax: every thread of a row computes the row's weights itself. A weight costs one exp2, beside
// 4 loads and 4 * channels multiply-adds. The x threads read their logits at the same address, in
// one transaction. Sharing weights would need shared memory (a limit on levels * points, and a
// barrier) or shuffles (head widths that divide a warp). The kernel divides by the sum of the
// weights at the end, so it reads the logits twice (the maximum first) and takes the exponentials
// once.
//
// The compilers must not contract (--fmad=false, -ffp-contract=off): the source writes each fmaf,
// so that the device and the host build round in the same places. Only exp2f may differ.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef RVOS_UNROLL
#define RVOS_UNROLL 1
#endif

namespace rvos {

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float to_float(float number) { return number; }
__device__ inline float to_float(__half number) { return __half2float(number); }
__device__ inline float to_float(__nv_bfloat16 number) { return __bfloat162float(number); }

__device__ inline float2 widen(__half2 pair) { return __half22float2(pair); }
__device__ inline float2 widen(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }

// Loads two neighbours at once: the x and the y of an offset.
__device__ inline float2 load_pair(const float* at) { return *reinterpret_cast<const float2*>(at); }
__device__ inline float2 load_pair(const __half* at) {
  return widen(*reinterpret_cast<const __half2*>(at));
}
__device__ inline float2 load_pair(const __nv_bfloat16* at) {
  return widen(*reinterpret_cast<const __nv_bfloat162*>(at));
}

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
struct AxisWeights {
  int first;
  bool near_inside, far_inside;
  float near_share, far_share;
};

__device__ inline AxisWeights find_taps(Origin origin, float offset, int size) {
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

// The four pixels of a sampling point, loaded and not yet used, and their shares.
struct Sample {
  uint4 raw[4];
  float share[4];
};

// Pixels outside are neither read nor counted, so no NaN or infinity can leak from them.
template <typename T>
__device__ inline Sample load_sample(const T* __restrict__ map, int pixel_stride, int width,
                                     AxisWeights x, AxisWeights y, float weight) {
  const int first = y.first * width + x.first;
  Sample sample;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const bool right = corner & 1, below = corner & 2;
    const bool inside = (right ? x.far_inside : x.near_inside) &&
                        (below ? y.far_inside : y.near_inside);
    const long long pixel = first + (right ? 1 : 0) + (below ? width : 0);
    const uint4 nothing = {0u, 0u, 0u, 0u};
    sample.raw[corner] =
        inside ? *reinterpret_cast<const uint4*>(map + pixel * pixel_stride) : nothing;
    sample.share[corner] = (weight * (below ? y.far_share : y.near_share)) *
                           (right ? x.far_share : x.near_share);
  }
  return sample;
}

template <typename T>
__device__ inline void add_sample(const Sample& sample, float* sum) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    float channels[Channels<T>::kCount];
    Channels<T>::unpack(sample.raw[corner], channels);
#pragma unroll
    for (int i = 0; i < Channels<T>::kCount; ++i) {
      sum[i] = fmaf(sample.share[corner], channels[i], sum[i]);
    }
  }
}

template <typename L>
__device__ inline float find_maximum(const L* __restrict__ logits, int count) {
  float maximum = to_float(logits[0]);
  for (int i = 1; i < count; ++i) maximum = fmaxf(maximum, to_float(logits[i]));
  return maximum;
}

template <typename T, typename O, typename L>
__device__ inline void ms_deform_attn(const T* __restrict__ value,
                                      const int* __restrict__ level_shapes,
                                      const float* __restrict__ reference_points,
                                      const O* __restrict__ sampling_offsets,
                                      const L* __restrict__ attention_logits, int pixels,
                                      int queries, int heads, int levels, int points,
                                      T* __restrict__ output) {
  constexpr int kCount = Channels<T>::kCount;
  constexpr int kUnroll = RVOS_UNROLL;
  // A row index within a batch entry fits in 32 bits: 2^31 rows are at least 32 GiB of output.
  const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= static_cast<unsigned>(queries) * heads) return;
  const int query = row / heads, head = row % heads;
  const int head_width = blockDim.x * kCount, pixel_stride = heads * head_width;
  const int channel = threadIdx.x * kCount;
  const long long batch = blockIdx.y;
  const long long item = batch * queries * heads + row;  // of [B,Q,heads]
  const int count = levels * points;

  const T* map = value + batch * pixels * pixel_stride + head * head_width + channel;
  const O* offsets = sampling_offsets + item * count * 2;
  const L* logits = attention_logits + item * count;
  const float2 reference = load_pair(reference_points + 2ll * query);
  const float maximum = find_maximum(logits, count);

  float sum[kCount] = {}, total = 0.0f;
  for (int level = 0; level < levels; ++level) {
    const int height = level_shapes[2 * level], width = level_shapes[2 * level + 1];
    const Origin origin_x = find_origin(reference.x, width);
    const Origin origin_y = find_origin(reference.y, height);
    for (int first = 0; first < points; first += kUnroll) {
      // All loads of the group come before any use. The kernel waits mostly for loads, and the
      // compiler does not hoist them over each other's conditions.
      Sample samples[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int point = min(first + i, points - 1);
        const bool valid = first + i < points;  // otherwise the last point repeats, at weight 0
        const float2 offset = load_pair(offsets + 2 * point);
        const float logit = to_float(logits[point]);
        const float weight = valid ? exp2f((logit - maximum) * kLog2E) : 0.0f;
        samples[i] = load_sample(map, pixel_stride, width, find_taps(origin_x, offset.x, width),
                                 find_taps(origin_y, offset.y, height), weight);
        total += weight;
      }
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) add_sample<T>(samples[i], sum);
    }
    offsets += 2 * points;
    logits += points;
    map += static_cast<long long>(height) * width * pixel_stride;
  }
  const float scale = 1.0f / total;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= scale;
  *reinterpret_cast<uint4*>(output + item * head_width + channel) = Channels<T>::pack(sum);
}

}  // namespace rvos

#ifndef RVOS_HOST
// TensorRT passes the inputs, then the scalars, then the output.
extern "C" __global__ void __launch_bounds__(RVOS_LAUNCH_BOUNDS) rvos_ms_deform_attn(
    const RVOS_VALUE* __restrict__ value, const int* __restrict__ level_shapes,
    const float* __restrict__ reference_points, const RVOS_OFFSETS* __restrict__ sampling_offsets,
    const RVOS_LOGITS* __restrict__ attention_logits, int pixels, int queries, int heads,
    int levels, int points, RVOS_VALUE* __restrict__ output) {
  rvos::ms_deform_attn(value, level_shapes, reference_points, sampling_offsets, attention_logits,
                       pixels, queries, heads, levels, points, output);
}
#endif
