// One HetConv layer, forward, float32, in one pass: each output is summed in a register.
//
// A strip of input rows is laid out so that an output pixel's right-hand neighbour always reads 16 floats further on,
// whatever the stride; padding is zeros there. A tile of output pixels by one vector of filters then walks one list of
// spans (a tap, neighbouring channels), weights streaming past once. cpu_kernel.py packs the weights in that order.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

struct Size {
    int64_t rows, columns;
};

// As cpu_kernel.py fills it in: int64 throughout.
struct Layer {
    int64_t batch, channels, filters, p;
    Size input, output, kernel, stride, padding, dilation;
    int64_t step_image, step_channel, step_row, step_column;  // of the input, in floats; the output is channels_last
    int64_t relu, threads;
};

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
constexpr int PIXELS = 14;  // of a tile, at most: its sums, a weight and an input fill 16 registers
constexpr int64_t BLOCK = 16;  // channels that stand together in a strip
constexpr int64_t STRIP = 64 * 1024;  // floats of a strip, wanted: a quarter of a usual second-level cache
constexpr int64_t AHEAD = 24;  // pixels that are asked for before they are copied
constexpr int64_t PIECES = 4;  // of work for each thread: with so many it does not matter who gets one more

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

struct Range {
    int64_t first, count;
};

struct Span {
    int64_t offset;  // from the tile's first pixel, in floats
    int64_t channels;
};

using Spans = std::vector<Span>;

struct Target {
    float* output;
    const float* residual;  // or null
    int64_t step_pixel, step_row;
    int64_t filters;  // of this vector
    bool relu;

    void advance(int64_t floats) {
        output += floats;
        if (residual) residual += floats;
    }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where things stand in a strip: [row][block of channels][column modulo stride][column / stride][channel of the block].
struct Strip {
    const Layer& layer;
    int64_t blocks, columns, step_phase, step_block, step_row;
    std::vector<int64_t> taps;  // where each tap of a tile's first pixel stands

    explicit Strip(const Layer& of) : layer(of) {
        blocks = ceil_div(of.channels, BLOCK);
        columns = of.output.columns + (of.kernel.columns - 1) * of.dilation.columns / of.stride.columns;
        step_phase = columns * BLOCK;
        step_block = step_phase * of.stride.columns;
        step_row = step_block * blocks;
        for (int64_t row = 0; row < of.kernel.rows; row++)
            for (int64_t i = 0; i < of.kernel.columns; i++) {
                const int64_t column = i * of.dilation.columns;
                const int64_t phase = column % of.stride.columns, place = column / of.stride.columns;
                taps.push_back(row * of.dilation.rows * step_row + phase * step_phase + place * BLOCK);
            }
    }

    int64_t rows_for(int64_t output_rows) const {
        return (output_rows - 1) * layer.stride.rows + (layer.kernel.rows - 1) * layer.dilation.rows + 1;
    }

    // Output rows of one strip: as many as fit, all strips of about one size.
    int64_t output_rows() const {
        int64_t rows = 1;
        while (rows < layer.output.rows && rows_for(rows + 1) * step_row <= STRIP) rows++;
        return ceil_div(layer.output.rows, ceil_div(layer.output.rows, rows));
    }

    void fill_row(float* strip, const float* row) const {
        for (int64_t phase = 0; phase < layer.stride.columns; phase++) {
            // places [first, stop) read the image, the others its padding
            const int64_t stride = layer.stride.columns, before = layer.padding.columns - phase;
            const int64_t first = std::clamp(ceil_div(before, stride), int64_t(0), columns);
            const int64_t stop = std::clamp(ceil_div(before + layer.input.columns, stride), first, columns);
            for (int64_t block = 0; block < blocks; block++) {
                float* to = strip + block * step_block + phase * step_phase;
                const float* from = row + block * BLOCK * layer.step_channel - before * layer.step_column;
                std::fill(to, to + first * BLOCK, 0.0f);
                copy(to, from, first, stop, std::min(BLOCK, layer.channels - block * BLOCK));
                std::fill(to + stop * BLOCK, to + columns * BLOCK, 0.0f);
            }
        }
    }

    void copy(float* to, const float* from, int64_t first, int64_t stop, int64_t channels) const {
        const int64_t step = layer.stride.columns * layer.step_column;
        if (layer.step_channel == 1 && channels == BLOCK) {
            for (int64_t place = first; place < stop; place++) {
                __builtin_prefetch(from + (place + AHEAD) * step);
                std::memcpy(to + place * BLOCK, from + place * step, BLOCK * sizeof(float));
            }
            return;
        }
        for (int64_t channel = 0; channel < channels; channel++)
            for (int64_t place = first; place < stop; place++)
                to[place * BLOCK + channel] = from[place * step + channel * layer.step_channel];
    }

    void fill(float* strip, const float* image, int64_t first_output_row, int64_t output_rows) const {
        for (int64_t i = 0; i < rows_for(output_rows); i++) {
            int64_t row = first_output_row * layer.stride.rows - layer.padding.rows + i;
            if (row < 0 || row >= layer.input.rows) std::fill_n(strip + i * step_row, step_row, 0.0f);
            else fill_row(strip + i * step_row, image + row * layer.step_row);
        }
    }
};

void put(const Target& to, int64_t pixel, Vector value) {
    float* output = to.output + pixel;
    if (to.filters == LANES) {
        if (to.residual) value += *reinterpret_cast<const Vector*>(to.residual + pixel);
        if (to.relu) value = value < 0.0f ? Vector{} : value;  // NaN stays NaN
        *reinterpret_cast<Vector*>(output) = value;
        return;
    }
    for (int64_t n = 0; n < to.filters; n++) {
        float one = value[n] + (to.residual ? to.residual[pixel + n] : 0.0f);
        output[n] = to.relu && one < 0.0f ? 0.0f : one;
    }
}

// P output pixels of one vector of filters. `from` is the tile's first pixel in the strip.
template <int P>
void tile(const float* from, const Spans& spans, const float* weights, Vector bias, const Target& to) {
    Vector sums[P];
#pragma GCC unroll 14
    for (int i = 0; i < P; i++) sums[i] = bias;
    for (const Span& span : spans) {
        const float* input = from + span.offset;
        for (int64_t left = span.channels; left > 0; left--, input++, weights += LANES) {
            const Vector weight = *reinterpret_cast<const Vector*>(weights);
#pragma GCC unroll 14
            for (int i = 0; i < P; i++) sums[i] += weight * input[i * BLOCK];
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < P; i++) put(to, i * to.step_pixel, sums[i]);
}

using Tile = void (*)(const float*, const Spans&, const float*, Vector, const Target&);

template <size_t... I>
Tile tile_of(int64_t pixels, std::index_sequence<I...>) {
    static constexpr Tile tiles[] = {tile<I + 1>...};
    return tiles[pixels - 1];
}

// The channels of the classes of filters first ... last, neighbours as both are in a blocked layer.
Range class_channels(const Layer& layer, int64_t first, int64_t last) {
    const int64_t part = layer.channels / layer.p;
    const int64_t first_class = first * layer.p / layer.filters, last_class = last * layer.p / layer.filters;
    return {first_class * part, (last_class - first_class + 1) * part};
}

// The centre tap on every channel, then the other taps on the channels of a vector's own classes.
Spans spans_of(const Strip& strip, Range own) {
    Spans spans;
    auto add = [&](int64_t tap, Range channels) {
        for (int64_t first = channels.first, stop = channels.first + channels.count; first < stop;) {
            const int64_t next = std::min(stop, (first / BLOCK + 1) * BLOCK);
            spans.push_back({strip.taps[tap] + first / BLOCK * strip.step_block + first % BLOCK, next - first});
            first = next;
        }
    };
    const int64_t taps = strip.taps.size();
    add(taps / 2, {0, strip.layer.channels});
    for (int64_t tap = 0; tap < taps; tap++)
        if (tap != taps / 2) add(tap, own);
    return spans;
}

struct Filters {  // one vector of them
    std::shared_ptr<Spans> spans;
    const float* weights;
    Vector bias;
};

std::vector<Filters> all_filters(const Strip& strip, const float* packed, const float* bias) {
    const Layer& layer = strip.layer;
    std::vector<Filters> all;
    Range known{-1, -1};
    for (int64_t first = 0; first < layer.filters; first += LANES) {
        const int64_t count = std::min(LANES, layer.filters - first);
        const Range own = class_channels(layer, first, first + count - 1);
        const bool same = own.first == known.first && own.count == known.count;  // vectors of one class
        Filters one{same ? all.back().spans : std::make_shared<Spans>(spans_of(strip, own)), packed, Vector{}};
        if (bias) for (int64_t n = 0; n < count; n++) one.bias[n] = bias[first + n];
        packed += (layer.channels + (int64_t(strip.taps.size()) - 1) * own.count) * LANES;
        all.push_back(std::move(one));
        known = own;
    }
    return all;
}

// Output rows of one vector of filters; `to` points at the first.
void run_strip(const Strip& strip, const float* from, const Filters& filters, int64_t rows, Target to) {
    const Layer& layer = strip.layer;
    const int64_t width = ceil_div(layer.output.columns, ceil_div(layer.output.columns, PIXELS));
    for (int64_t row = 0; row < rows; row++, from += strip.step_row * layer.stride.rows, to.advance(to.step_row)) {
        Target here = to;
        for (int64_t column = 0; column < layer.output.columns; column += width, here.advance(width * to.step_pixel)) {
            const int64_t pixels = std::min(width, layer.output.columns - column);
            tile_of(pixels, std::make_index_sequence<PIXELS>())(from + column * BLOCK, *filters.spans, filters.weights,
                                                                filters.bias, here);
        }
    }
}

}  // namespace

extern "C" int64_t hetconv_lanes() { return LANES; }

// How many floats the packed weights of `layer` are.
extern "C" int64_t hetconv_packed_floats(const Layer* layer) {
    int64_t floats = 0;
    for (int64_t first = 0; first < layer->filters; first += LANES) {
        const Range own = class_channels(*layer, first, std::min(first + LANES, layer->filters) - 1);
        floats += (layer->channels + (layer->kernel.rows * layer->kernel.columns - 1) * own.count) * LANES;
    }
    return floats;
}

// relu(convolution + bias + residual). `bias` and `residual` may be null; `residual` and `output` are
// [batch, rows, columns, filters]. Returns 0, or 1 where there is no memory for a strip.
extern "C" int64_t hetconv_forward(const Layer* of, const float* input, const float* packed, const float* bias,
                                   const float* residual, float* output) try {
    const Layer& layer = *of;
    const Strip strip(layer);
    const std::vector<Filters> filters = all_filters(strip, packed, bias);
    const int64_t vectors = filters.size(), strip_rows = strip.output_rows();
    const int64_t strips = ceil_div(layer.output.rows, strip_rows);
    const int64_t pieces = layer.batch * strips;
    int64_t cuts = 1;
    while (cuts < vectors && cuts * pieces < PIECES * layer.threads && cuts * pieces % layer.threads) cuts++;
    const int64_t share = ceil_div(vectors, cuts), shares = ceil_div(vectors, share);
    const int64_t step_row = layer.output.columns * layer.filters, step_image = layer.output.rows * step_row;

    std::atomic<bool> failed{false};

#pragma omp parallel for schedule(dynamic) num_threads(layer.threads)
    for (int64_t piece = 0; piece < pieces * shares; piece++) {
        static thread_local std::vector<float> floats;  // kept: fresh pages at every call would cost a few percent
        const int64_t image = piece / (strips * shares), first_row = piece / shares % strips * strip_rows;
        const int64_t rows = std::min(strip_rows, layer.output.rows - first_row);
        const size_t needed = strip.rows_for(rows) * strip.step_row;
        try {
            if (floats.size() < needed) floats.resize(needed);
        } catch (const std::bad_alloc&) {
            failed = true;
            continue;
        }
        strip.fill(floats.data(), input + image * layer.step_image, first_row, rows);
        const int64_t first = piece % shares * share;
        for (int64_t v = first; v < std::min(vectors, first + share); v++) {
            const int64_t start = image * step_image + first_row * step_row + v * LANES;
            const Target to{output + start, residual ? residual + start : nullptr, layer.filters, step_row,
                            std::min(LANES, layer.filters - v * LANES), layer.relu != 0};
            run_strip(strip, floats.data(), filters[v], rows, to);
        }
    }
    return failed;
} catch (const std::bad_alloc&) {
    return 1;
}
