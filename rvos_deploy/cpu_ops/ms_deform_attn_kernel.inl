// Computes multi-scale deformable attention for a range of queries.
//
// ms_deform_attn.cpp includes this file once per instruction set, in a namespace of its own.
// RVOS_VECTOR_BYTES is the width of its registers.

template <typename Real>
struct Vectors {
  typedef Real Reals __attribute__((vector_size(RVOS_VECTOR_BYTES)));
  typedef Integer<Real> Ints __attribute__((vector_size(RVOS_VECTOR_BYTES)));
};
template <typename Real>
using RealVector = typename Vectors<Real>::Reals;
template <typename Real>
using IntVector = typename Vectors<Real>::Ints;
template <typename Real>
constexpr int kLanes = RVOS_VECTOR_BYTES / sizeof(Real);
using Floats = RealVector<float>;
using Ints = IntVector<float>;

// Sums of Width channels.
template <typename Real, int Width>
struct Block {
  static constexpr int kAll = Width * sizeof(Real);
  static constexpr int kBytes = kAll < RVOS_VECTOR_BYTES ? kAll : RVOS_VECTOR_BYTES;
  static constexpr int kCount = kAll / kBytes;
  static constexpr int kEach = Width / kCount;
  typedef Real Vector __attribute__((vector_size(kBytes)));
  Vector parts[kCount];

  RVOS_INLINE void add(Real factor, const Real* row) {
    for (int i = 0; i < kCount; ++i) {
      Vector numbers;
      __builtin_memcpy(&numbers, row + i * kEach, sizeof numbers);
      parts[i] += factor * numbers;
    }
  }
  template <typename Stored>
  RVOS_INLINE void add(Real factor, const Stored* row) {
    for (int i = 0; i < kCount; ++i) {
      Vector numbers;
      for (int c = 0; c < kEach; ++c) numbers[c] = widen(row[i * kEach + c]);
      parts[i] += factor * numbers;
    }
  }
  RVOS_INLINE void add(const Block& other) {
    for (int i = 0; i < kCount; ++i) parts[i] += other.parts[i];
  }
  RVOS_INLINE Real get(int channel) const { return parts[channel / kEach][channel % kEach]; }
};

template <typename Vector, typename Number>
RVOS_INLINE Vector load(const Number* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector, typename Number>
RVOS_INLINE void store(const Vector& vector, Number* to) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

// Sets the reference point of one axis in pixels, per sample: whole + rest, where pixel centres are
// whole numbers. One float32 for reference * size + offset is off by up to 3e-5 of a pixel at a size
// of 512.
template <typename Real>
void set_origins(int64_t padded, Real reference, const Integer<Real>* __restrict size,
                 Integer<Real>* __restrict whole, Real* __restrict rest) {
  for (int64_t k = 0; k < padded; ++k) {
    if (k > 0 && size[k] == size[k - 1]) {  // most samples share their level with the one before
      whole[k] = whole[k - 1];
      rest[k] = rest[k - 1];
      continue;
    }
    const Real edge = reference * static_cast<Real>(size[k]);
    const Real lost = std::fma(reference, static_cast<Real>(size[k]), -edge);  // edge's rounding
    const Real above = edge > Real(-kFarthest) ? edge : Real(-kFarthest);  // also of NaN
    const Real bounded = above < Real(kFarthest) ? above : Real(kFarthest);
    const Real floored = std::floor(bounded);
    whole[k] = static_cast<Integer<Real>>(floored);
    rest[k] = ((bounded - floored) - Real(0.5)) + (edge == bounded ? lost : Real(0));
  }
}

// Reads a row's numbers. Lanes beyond count keep logits of -infinity and offsets of 0.
template <typename Real, typename Stored>
void read_samples(int64_t count, const Stored* __restrict offsets, const Stored* __restrict logits,
                  const Samples<Real>& to) {
  Real* __restrict x = to.x;
  Real* __restrict y = to.y;
  Real* __restrict logit = to.logit;
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) {
    x[k] = widen(offsets[2 * k]);
    y[k] = widen(offsets[2 * k + 1]);
    logit[k] = widen(logits[k]);
  }
}

// 2^x for x <= 0: Cody-Waite reduction and the Taylor series to degree 7. Relative error 1.2e-7.
RVOS_INLINE Floats exp2_negative(const Floats& x) {
  const Floats bounded = x > -126.0f ? x : Floats{} - 126.0f;
  const Ints whole = __builtin_convertvector(bounded - 0.5f, Ints);  // nearest: all are negative
  const Floats r = (bounded - __builtin_convertvector(whole, Floats)) * 0.693147180559945309f;
  Floats sum = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const Ints bits = (whole + 127) << 23;
  const Floats result = sum * load<Floats>(&bits);
  const Floats small = x < -126.0f ? Floats{} : x;  // x where it is NaN
  return x >= -126.0f ? result : small;
}

// Writes unnormalized weights, and returns the reciprocal of their sum.
inline float softmax(int64_t padded, const Samples<float>& samples) {
  constexpr float kLog2E = 1.4426950408889634f;
  Floats greatest = load<Floats>(samples.logit);
  for (int64_t k = kLanes<float>; k < padded; k += kLanes<float>) {
    const Floats logit = load<Floats>(samples.logit + k);
    greatest = logit > greatest ? logit : greatest;
  }
  float maximum = greatest[0];
  for (int lane = 1; lane < kLanes<float>; ++lane) {
    maximum = greatest[lane] > maximum ? greatest[lane] : maximum;
  }
  Floats totals = {};
  for (int64_t k = 0; k < padded; k += kLanes<float>) {
    const Floats weight = exp2_negative((load<Floats>(samples.logit + k) - maximum) * kLog2E);
    store(weight, samples.weight + k);
    totals += weight;
  }
  float total = 0.0f;
  for (int lane = 0; lane < kLanes<float>; ++lane) total += totals[lane];
  return 1.0f / total;
}

inline double softmax(int64_t padded, const Samples<double>& samples) {
  double maximum = samples.logit[0], total = 0.0;
  for (int64_t k = 1; k < padded; ++k) {
    maximum = samples.logit[k] > maximum ? samples.logit[k] : maximum;
  }
  for (int64_t k = 0; k < padded; ++k) {
    samples.weight[k] = std::exp(samples.logit[k] - maximum);
    total += samples.weight[k];
  }
  return 1.0 / total;
}

// Finds the first of the two pixels around a location on one axis: -2 at least and the size at most,
// where both are outside. *far is the share of the second.
template <typename Real>
RVOS_INLINE IntVector<Real> first_pixel(
    const RealVector<Real>& offset, const IntVector<Real>& whole, const RealVector<Real>& rest,
    const IntVector<Real>& size, RealVector<Real>* far) {
  using Ints = IntVector<Real>;
  using Reals = RealVector<Real>;
  const Reals low = Reals{} - Real(kFarthest), high = Reals{} + Real(kFarthest);
  const Reals above = offset > low ? offset : low;  // NaN becomes low
  const Reals bounded = above < high ? above : high;
  const Ints truncated = __builtin_convertvector(bounded, Ints);
  // A true comparison is -1.
  const Ints floored = truncated + (bounded < __builtin_convertvector(truncated, Reals));
  const Reals sum = rest + (bounded - __builtin_convertvector(floored, Reals));  // -0.5 to 1.5
  const Ints carry = __builtin_convertvector(sum + Real(1), Ints) - 1;
  *far = sum - __builtin_convertvector(carry, Reals);
  const Ints first = whole + floored + carry;
  const Ints lowest = Ints{} - 2;
  const Ints bounded_first = first > lowest ? first : lowest;
  return bounded_first < size ? bounded_first : size;
}

// Finds the corners of every sample. A share holds the sample's weight, unless gradients need it
// apart. Returns whether every corner lies inside its level.
template <bool Gradients, typename Real>
bool find_corners(int64_t padded, const Samples<Real>& samples) {
  using Ints = IntVector<Real>;
  using Reals = RealVector<Real>;
  Ints all = Ints{} - 1;
  for (int64_t k = 0; k < padded; k += kLanes<Real>) {
    Reals far_x, far_y;
    const Ints width = load<Ints>(samples.width + k), height = load<Ints>(samples.height + k);
    const Ints x = first_pixel<Real>(load<Reals>(samples.x + k), load<Ints>(samples.whole_x + k),
                                     load<Reals>(samples.rest_x + k), width, &far_x);
    const Ints y = first_pixel<Real>(load<Reals>(samples.y + k), load<Ints>(samples.whole_y + k),
                                     load<Reals>(samples.rest_y + k), height, &far_y);
    store(load<Ints>(samples.start + k) + y * width + x, samples.pixel + k);
    const Ints left = (x >= 0) & (x < width), right = (x >= -1) & (x + 1 < width);
    const Ints top = (y >= 0) & (y < height), below = (y >= -1) & (y + 1 < height);
    store((top & left & 1) | (top & right & 2) | (below & left & 4) | (below & right & 8),
          samples.inside + k);
    all &= left & right & top & below;
    Reals upper = Real(1) - far_y, lower = far_y;
    if (!Gradients) {
      const Reals weight = load<Reals>(samples.weight + k);
      upper *= weight;
      lower *= weight;
    }
    const Reals near_x = Real(1) - far_x;
    store(upper * near_x, samples.share[0] + k);
    store(upper * far_x, samples.share[1] + k);
    store(lower * near_x, samples.share[2] + k);
    store(lower * far_x, samples.share[3] + k);
  }
  for (int lane = 0; lane < kLanes<Real>; ++lane) {
    if (!all[lane]) return false;
  }
  return true;
}

// Adds share * row to each of Width channels, for the corners inside their level. Sums of several
// corners run side by side, which hides the latency of the multiply-adds.
template <int Width, bool AllInside, typename Real, typename Stored>
RVOS_INLINE void add_rows(int64_t count, const Samples<Real>& samples,
                                                    const Stored* map, int64_t pixel_stride,
                                                    Block<Real, Width>* sums) {
  constexpr int kChains = Width * sizeof(Real) > 64 ? 2 : 4;
  static const Stored zeros[Width] = {};  // stands for a pixel outside, without a branch
  Block<Real, Width> chains[kChains] = {};
  for (int64_t k = 0; k < count; ++k) {
    const Stored* upper = map + samples.pixel[k] * pixel_stride;
    const Stored* lower = upper + samples.width[k] * pixel_stride;
    const Stored* rows[4] = {upper, upper + pixel_stride, lower, lower + pixel_stride};
    const Integer<Real> inside = samples.inside[k];
    for (int corner = 0; corner < 4; ++corner) {
      const Stored* row = AllInside || (inside >> corner) & 1 ? rows[corner] : zeros;
      chains[corner % kChains].add(samples.share[corner][k], row);
    }
  }
  for (int chain = 1; chain < kChains; ++chain) chains[0].add(chains[chain]);
  *sums = chains[0];
}

template <int Width, typename Real, typename Stored>
RVOS_INLINE void sum_block(int64_t count, bool all_inside,
                                                     const Samples<Real>& samples,
                                                     const Stored* map, int64_t pixel_stride,
                                                     Real scale, Stored* output) {
  Block<Real, Width> sums;
  if (all_inside) {
    add_rows<Width, true>(count, samples, map, pixel_stride, &sums);
  } else {
    add_rows<Width, false>(count, samples, map, pixel_stride, &sums);
  }
  for (int c = 0; c < Width; ++c) narrow(sums.get(c) * scale, output + c);
}

// Covers any number of channels by blocks whose sums stay in registers.
template <typename Real, typename Stored>
inline void sum_channels(int64_t channels, int64_t count, bool all_inside,
                         const Samples<Real>& samples, const Stored* map, int64_t pixel_stride,
                         Real scale, Stored* output) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) {
    sum_block<32>(count, all_inside, samples, map + c, pixel_stride, scale, output + c);
  }
  for (; c + 16 <= channels; c += 16) {
    sum_block<16>(count, all_inside, samples, map + c, pixel_stride, scale, output + c);
  }
  for (; c + 8 <= channels; c += 8) {
    sum_block<8>(count, all_inside, samples, map + c, pixel_stride, scale, output + c);
  }
  for (; c < channels; ++c) {
    sum_block<1>(count, all_inside, samples, map + c, pixel_stride, scale, output + c);
  }
}

template <typename Real>
void set_query(int64_t padded, const Real* reference_point, const Samples<Real>& samples) {
  set_origins(padded, reference_point[0], samples.width, samples.whole_x, samples.rest_x);
  set_origins(padded, reference_point[1], samples.height, samples.whole_y, samples.rest_y);
}

template <typename Real, typename Value, typename Point>
void forward(const Sizes& sizes, const Samples<Real>& samples, const Value* value,
             const Real* reference_points, const Point* sampling_offsets,
             const Point* attention_logits, Value* output, int64_t first, int64_t end) {
  const int64_t count = sizes.levels * sizes.points, padded = pad(count);
  const int64_t pixel_stride = sizes.heads * sizes.channels;
  for (int64_t item = first; item < end; ++item) {
    const int64_t batch = item / sizes.queries, query = item % sizes.queries;
    const Value* image = value + batch * sizes.pixels * pixel_stride;
    set_query(padded, reference_points + 2 * query, samples);
    for (int64_t head = 0; head < sizes.heads; ++head) {
      const int64_t row = item * sizes.heads + head;
      read_samples(count, sampling_offsets + 2 * row * count, attention_logits + row * count,
                   samples);
      const Real scale = softmax(padded, samples);
      const bool all_inside = find_corners<false>(padded, samples);
      sum_channels(sizes.channels, count, all_inside, samples, image + head * sizes.channels,
                   pixel_stride, scale, output + row * sizes.channels);
    }
  }
}

// Computes gradients for one (batch, head): it alone writes its slice of grad_value.
template <typename Real>
void backward(const Sizes& sizes, const Samples<Real>& samples, const Real* value,
              const Real* reference_points, const Real* sampling_offsets,
              const Real* attention_logits, const Real* grad_output, Real* grad_value,
              Real* grad_offsets, Real* grad_logits, int64_t batch, int64_t head) {
  const int64_t count = sizes.levels * sizes.points, padded = pad(count);
  const int64_t pixel_stride = sizes.heads * sizes.channels;
  const int64_t channels = sizes.channels;
  const int64_t map = batch * sizes.pixels * pixel_stride + head * channels;
  for (int64_t query = 0; query < sizes.queries; ++query) {
    const int64_t row = (batch * sizes.queries + query) * sizes.heads + head;
    set_query(padded, reference_points + 2 * query, samples);
    read_samples(count, sampling_offsets + 2 * row * count, attention_logits + row * count,
                 samples);
    const Real scale = softmax(padded, samples);
    find_corners<true>(padded, samples);
    const Real* __restrict grad = grad_output + row * channels;
    Real mean = 0;
    for (int64_t k = 0; k < count; ++k) {
      const Real weight = samples.weight[k] * scale;
      Real dots[4] = {};  // of the output's gradient with each corner; 0 outside
      Real to_weight = 0;
      for (int corner = 0; corner < 4; ++corner) {
        if (!((samples.inside[k] >> corner) & 1)) continue;
        const int64_t pixel = samples.pixel[k] + corner % 2 + corner / 2 * samples.width[k];
        const Real* __restrict from = value + map + pixel * pixel_stride;
        Real* __restrict to = grad_value + map + pixel * pixel_stride;
        const Real factor = weight * samples.share[corner][k];
        Real dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t c = 0; c < channels; ++c) {
          dot += grad[c] * from[c];
          to[c] += factor * grad[c];
        }
        dots[corner] = dot;
        to_weight += samples.share[corner][k] * dot;
      }
      const Real far_x = samples.share[1][k] + samples.share[3][k];
      const Real far_y = samples.share[2][k] + samples.share[3][k];
      const Real to_x = (Real(1) - far_y) * (dots[1] - dots[0]) + far_y * (dots[3] - dots[2]);
      const Real to_y = (Real(1) - far_x) * (dots[2] - dots[0]) + far_x * (dots[3] - dots[1]);
      grad_offsets[2 * (row * count + k)] = weight * to_x;
      grad_offsets[2 * (row * count + k) + 1] = weight * to_y;
      grad_logits[row * count + k] = to_weight;
      mean += weight * to_weight;
    }
    for (int64_t k = 0; k < count; ++k) {
      Real* to = grad_logits + row * count + k;
      *to = samples.weight[k] * scale * (*to - mean);
    }
  }
}

// Sums rows at given pixels without weights: the least that deformable attention must read.
inline void sum_rows(const Sizes& sizes, const float* value, const int32_t* pixels, float* output,
                     int64_t first, int64_t end) {
  const int64_t count = 4 * sizes.levels * sizes.points;
  const int64_t pixel_stride = sizes.heads * sizes.channels;
  for (int64_t item = first; item < end; ++item) {
    const float* image = value + item / sizes.queries * sizes.pixels * pixel_stride;
    for (int64_t head = 0; head < sizes.heads; ++head) {
      const int64_t row = item * sizes.heads + head;
      for (int64_t c = 0; c < sizes.channels; c += 16) {
        const float* map = image + head * sizes.channels + c;
        Block<float, 16> chains[4] = {};
        for (int64_t k = 0; k < count; k += 4) {
          for (int chain = 0; chain < 4; ++chain) {
            chains[chain].add(1.0f, map + pixels[row * count + k + chain] * pixel_stride);
          }
        }
        for (int chain = 1; chain < 4; ++chain) chains[0].add(chains[chain]);
        for (int i = 0; i < 16; ++i) output[row * sizes.channels + c + i] = chains[0].get(i);
      }
    }
  }
}
