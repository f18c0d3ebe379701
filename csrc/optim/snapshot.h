// The records of a step that was checked, and how to tell that the next step's have the same form.
#pragma once
#include <deque>
#include <string>
#include "optim/device_records.h"
#include "optim/walk.h"

namespace fastdl::optim {

class Snapshot {
 public:
  // groups: (param_group, names of its states in the kernel's order, row of options), refresh(index) -> (row,
  // max_grad_norm), or None. Throws py::value_error where this is no step to be taken again.
  Snapshot(RuleName rule, py::list groups, py::dict state, optional<double> max_grad_norm, py::object refresh)
      : exchange_(Exchange::get()), rule_(rule), refresh_(std::move(refresh)), max_grad_norm_(max_grad_norm) {
    require(exchange_ != nullptr);
    rows_.resize(groups.size());
    groups_.resize(groups.size());
    uint32_t ordinal = 0;
    for (size_t row = 0; row < groups.size(); ++row) add_params(row, groups[row].cast<py::tuple>(), ordinal);
    require(!records_.empty());
    index_states(state.ptr());
    for (size_t row = 0; row < groups.size(); ++row) find_roles(row, groups[row].cast<py::tuple>());
    require(look(groups, state, [](py::handle group) { return group.cast<py::tuple>()[0].ptr(); }));
  }
  Snapshot(const Snapshot&) = delete;  // pointers lead into it

  // Fills the records with this step's addresses and the rows with its options; false, and the snapshot is no
  // longer any good, where more has changed.
  bool look(py::list groups, py::dict state) {
    return look(groups, state, [](py::handle group) { return group.ptr(); });
  }
  // Lets go of the gradients that the last look found.
  void release() { gradients_.clear(); }

  RuleName rule() const { return rule_; }
  std::vector<Record>& records() { return records_; }
  std::vector<Row>& rows() { return rows_; }
  dlpack::Device device() const { return device_; }
  optional<double> max_grad_norm() const { return max_grad_norm_; }
  // Whether an address other than a gradient's is another than when this was asked before.
  bool has_moved() { return std::exchange(moved_, false); }

  // Lists of what the step writes to, for torch's version counters.
  py::list written(const py::list& groups) const {
    py::list all;
    for (size_t row = 0; row < groups_.size(); ++row) {
      if (groups_[row].whole) {
        all.append(groups[row][params_]);
        continue;
      }
      py::list some;
      for (const Item& item : groups_[row].items) {
        if (item.record < 0) continue;
        some.append(py::handle(item.param));
        if (groups_[row].zeroes) some.append(py::handle(gradients_[size_t(item.record)].get()));
      }
      all.append(some);
    }
    return all;
  }

  const Exchange& exchange() const { return *exchange_; }

 private:
  static constexpr size_t kAhead = 6;

  struct Item {
    PyObject* param;
    int64_t record;  // -1: it has no gradient
  };
  struct Group {
    std::vector<Item> items;
    std::vector<std::pair<py::object, int>> roles;  // of the entries of a parameter's state, in their order
    OptionWatch options;
    bool zeroes = false, whole = false;  // whole: its list of parameters is what the step writes to
  };
  struct Place {  // where a tensor was seen: to be fetched, never to be read
    const void* object = nullptr;
    const int64_t* sizes = nullptr;
  };
  struct Entry {  // of optimizer.state
    PyObject* param;
    int64_t record;  // -1: takes no part
  };

  static py::str interned(const char* name) {
    return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
  }
  static void require(bool holds) {
    if (!holds) throw py::value_error("OptimReplay: not a step to be taken again");
  }

  // Building ------------------------------------------------------------------------------------------------

  void set_row(size_t row, const std::vector<double>& options) {
    require(options.size() == size_t(kOptionCount));
    std::memcpy(&rows_[row].options, options.data(), sizeof(Options));
    groups_[row].zeroes = rows_[row].options.zero_grad != 0;
    groups_[row].whole = groups_[row].whole && !groups_[row].zeroes;
  }

  void add_params(size_t row, const py::tuple& given, uint32_t& ordinal) {
    set_row(row, given[2].cast<std::vector<double>>());
    for (py::handle param : given[0]["params"].cast<py::list>()) {
      dlpack::Tensor p, g;
      const uint32_t place = ordinal++;
      require(exchange_->describe(param.ptr(), p));
      const Reference grad(exchange_->grad(param.ptr()));
      require(grad.get() != nullptr);
      if (grad.get() == Py_None) {
        groups_[row].items.push_back({param.ptr(), -1});
        continue;
      }
      require(exchange_->describe(grad.get(), g));
      Record r{};
      require(known_dtype(p.dtype, r.param.dtype) && known_dtype(g.dtype, r.grad.dtype));
      if (records_.empty()) device_ = p.device;
      r.options = &rows_[row].options;
      r.ordinal = place;
      r.dim = p.dim;
      r.numel = 1;
      for (int d = 0; d < p.dim; ++d) r.numel *= p.sizes[d];
      layouts_.push_back({});
      std::vector<int64_t>& extents = layouts_.back();
      extents.assign(p.sizes, p.sizes + p.dim);
      extents.insert(extents.end(), p.strides, p.strides + p.dim);
      r.sizes = extents.data();
      require(is_dense(r, r.options->stochastic_rounding != 0));
      groups_[row].items.push_back({param.ptr(), int64_t(records_.size())});
      records_.push_back(r);
    }
    groups_[row].whole =
        !groups_[row].zeroes && std::all_of(groups_[row].items.begin(), groups_[row].items.end(),
                                            [](const Item& item) { return item.record >= 0; });
  }

  // Without gaps or overlaps; in row-major order where asked.
  static bool is_dense(const Record& r, bool row_major) {
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (int64_t d = r.dim - 1; d >= 0; --d) {
      if (r.sizes[d] == 0) return true;
      if (r.sizes[d] > 1) dims.emplace_back(r.sizes[r.dim + d], r.sizes[d]);
    }
    if (!row_major) std::sort(dims.begin(), dims.end());
    int64_t expected = 1;
    for (auto [stride, size] : dims) {
      if (stride != expected) return false;
      expected *= size;
    }
    return true;
  }

  void index_states(PyObject* state) {
    std::vector<std::pair<PyObject*, int64_t>> records;
    for (const Group& group : groups_) {
      for (const Item& item : group.items) records.emplace_back(item.param, item.record);
    }
    std::sort(records.begin(), records.end());
    states_of_.resize(records_.size());
    places_.resize(records_.size());
    Py_ssize_t place = 0;
    PyObject *param = nullptr, *entries = nullptr;
    while (PyDict_Next(state, &place, &param, &entries)) {
      const auto found = std::lower_bound(records.begin(), records.end(), std::pair(param, INT64_MIN));
      const int64_t record = found != records.end() && found->first == param ? found->second : -1;
      if (record >= 0) states_of_[size_t(record)] = entries;
      entries_.push_back({param, record});
    }
  }

  // The entries of the group's first parameter stand for those of all.
  void find_roles(size_t row, const py::tuple& given) {
    Group& group = groups_[row];
    const Options& o = rows_[row].options;
    group.options.take(given[0].ptr());
    const std::vector<std::string> names = given[1].cast<std::vector<std::string>>();
    const auto first = std::find_if(group.items.begin(), group.items.end(),
                                    [](const Item& item) { return item.record >= 0; });
    if (first == group.items.end() || names.empty()) return;
    std::vector<int> wanted;
    if (has_step(rule_, o)) wanted.push_back(kStepRole);
    for (int k = 0; k < state_count(rule_, o); ++k) wanted.push_back(kFirstState + k);
    const bool low = is_low_precision(records_[size_t(first->record)].param.dtype);
    if (o.master_weights != 0 && low) wanted.push_back(kMasterRole);
    if (o.ema_decay >= 0) wanted.push_back(kEmaRole);
    require(wanted.size() == names.size());
    PyObject* entries = states_of_[size_t(first->record)];
    require(entries && PyDict_CheckExact(entries));
    Py_ssize_t place = 0;
    PyObject *key = nullptr, *value = nullptr;
    size_t found = 0;
    while (PyDict_Next(entries, &place, &key, &value)) {
      const auto name = std::find(names.begin(), names.end(), py::str(py::handle(key)).cast<std::string>());
      const int role = name == names.end() ? int(kNoRole) : wanted[size_t(name - names.begin())];
      group.roles.emplace_back(py::reinterpret_borrow<py::object>(key), role);
      found += role != kNoRole;
      for (const Item& item : group.items) {
        dlpack::Tensor t;
        if (role == kNoRole || item.record < 0) continue;
        PyObject* own = states_of_[size_t(item.record)];
        require(own && PyDict_CheckExact(own));
        PyObject* tensor = PyDict_GetItemWithError(own, key);
        Operand& operand = operand_of(records_[size_t(item.record)], role);
        require(tensor && exchange_->describe(tensor, t) && known_dtype(t.dtype, operand.dtype));
      }
    }
    require(found == names.size());
  }

  // Looking -------------------------------------------------------------------------------------------------

  template <class Dict>
  bool look(const py::list& groups, const py::dict& state, Dict&& dict_of) {
    gradients_.clear();
    if (groups.size() != groups_.size() || !find_states(state.ptr())) return false;
    for (size_t row = 0; row < groups_.size(); ++row) {
      PyObject* group = dict_of(groups[row]);
      if (!PyDict_CheckExact(group) || !find_options(row, group) || !find_tensors(groups_[row], group))
        return false;
    }
    return true;
  }

  bool find_states(PyObject* state) {
    if (PyDict_GET_SIZE(state) != Py_ssize_t(entries_.size())) return false;
    Py_ssize_t place = 0;
    PyObject *param = nullptr, *entries = nullptr;
    for (size_t i = 0; PyDict_Next(state, &place, &param, &entries); ++i) {
      if (param != entries_[i].param) return false;
      if (entries_[i].record >= 0) states_of_[size_t(entries_[i].record)] = entries;
    }
    return true;
  }

  bool find_options(size_t row, PyObject* group) {
    if (!groups_[row].options.same(group)) {
      const py::object fresh = refresh_(row);
      if (fresh.is_none()) return false;
      const auto [options, norm] = fresh.cast<std::pair<std::vector<double>, optional<double>>>();
      set_row(row, options);
      max_grad_norm_ = norm;
      groups_[row].options.take(group);
    }
    PyObject* lr = PyDict_GetItemWithError(group, lr_.ptr());
    return lr && find_lr(rows_[row], lr);
  }

  bool find_lr(Row& row, PyObject* lr) {
    row.lr = nullptr;
    if (PyFloat_Check(lr) || PyLong_Check(lr)) {
      row.options.lr = PyFloat_AsDouble(lr);
      return true;
    }
    dlpack::Tensor t;
    ScalarType dtype;
    if (!exchange_->describe(lr, t) || !known_dtype(t.dtype, dtype) || t.numel() != 1) return false;
    if (t.device != device_ && t.device.type != dlpack::kCpu) return false;
    row.lr_dtype = tag(dtype);
    row.lr = t.address();
    if (t.device.type == dlpack::kCpu) row.options.lr = value_of(t, dtype);
    if (t.device != device_) row.lr = nullptr;
    return true;
  }

  bool find_tensors(Group& group, PyObject* dict) {
    PyObject* params = PyDict_GetItemWithError(dict, params_.ptr());
    if (!params || !PyList_CheckExact(params) || PyList_GET_SIZE(params) != Py_ssize_t(group.items.size()))
      return false;
    for (size_t i = 0; i < group.items.size(); ++i) {
      const Item& item = group.items[i];
      if (i + 2 * kAhead < group.items.size()) fetch_first(group.items[i + 2 * kAhead]);
      if (i + kAhead < group.items.size()) fetch(group.items[i + kAhead]);
      if (PyList_GET_ITEM(params, Py_ssize_t(i)) != item.param) return false;
      dlpack::Tensor p;
      if (!exchange_->describe(item.param, p)) return false;
      Reference grad(exchange_->grad(item.param));
      if (!grad.get()) throw py::error_already_set();
      if ((grad.get() == Py_None) != (item.record < 0)) return false;
      if (item.record < 0) continue;
      Record& r = records_[size_t(item.record)];
      dlpack::Tensor g;
      if (!exchange_->describe(grad.get(), g) || !exchange_->is_plain(grad.get(), g)) return false;
      places_[size_t(item.record)][kNoRole] = {grad.get(), p.sizes};
      if (!take(r, r.param, p) || !same_form(r, r.grad, g)) return false;
      r.grad.data = g.address();
      gradients_.push_back(std::move(grad));
      if (!group.roles.empty() && !find_entries(group, r, states_of_[size_t(item.record)])) return false;
    }
    return true;
  }

  // Thousands of tensors lie scattered over memory: what a look touches is fetched some tensors ahead, by
  // where it was seen last. A wrong guess costs time alone.
  void fetch_first(const Item& item) const {
    __builtin_prefetch(item.param);
    if (item.record >= 0) __builtin_prefetch(states_of_[size_t(item.record)]);
  }
  void fetch(const Item& item) const {
    if (item.record < 0) return;
    PyObject* const entries = states_of_[size_t(item.record)];
    if (entries && PyDict_CheckExact(entries)) {
      const char* keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(entries)->ma_keys);
      __builtin_prefetch(keys);
      __builtin_prefetch(keys + 64);
    }
    for (const Place& place : places_[size_t(item.record)]) {
      const char* sizes = reinterpret_cast<const char*>(place.sizes);  // in torch's tensor object
      __builtin_prefetch(place.object);
      __builtin_prefetch(sizes - 64);
      __builtin_prefetch(sizes);
      __builtin_prefetch(sizes + 64);
    }
  }

  bool find_entries(const Group& group, Record& r, PyObject* entries) {
    if (!PyDict_CheckExact(entries) || PyDict_GET_SIZE(entries) != Py_ssize_t(group.roles.size()))
      return false;
    Py_ssize_t place = 0;
    PyObject *key = nullptr, *value = nullptr;
    for (size_t i = 0; PyDict_Next(entries, &place, &key, &value); ++i) {
      const auto& [name, role] = group.roles[i];
      if (key != name.ptr() && (!PyUnicode_Check(key) || PyUnicode_Compare(key, name.ptr()) != 0))
        return false;
      if (role == kNoRole) continue;
      dlpack::Tensor t;
      if (!exchange_->describe(value, t)) return false;
      if (!take(r, operand_of(r, role), t, role == kStepRole)) return false;
      places_[size_t(&r - records_.data())][size_t(role)] = {value, t.sizes};
    }
    return true;
  }

  // Whether a tensor has the record's form: on its device, of the operand's dtype, laid out as the parameter.
  bool same_form(const Record& r, const Operand& operand, const dlpack::Tensor& t,
                 bool scalar = false) const {
    ScalarType dtype;
    if (t.device != device_ || !known_dtype(t.dtype, dtype) || dtype != operand.dtype) return false;
    if (scalar) return t.dim == 0;
    bool same = t.dim == r.dim;
    for (int64_t d = 0; same && d < r.dim; ++d) {  // a call of memcmp takes longer than the few there are
      same = t.sizes[d] == r.sizes[d] && t.strides[d] == r.sizes[r.dim + d];
    }
    return same;
  }
  bool take(const Record& r, Operand& operand, const dlpack::Tensor& t, bool scalar = false) {
    if (!same_form(r, operand, t, scalar)) return false;
    moved_ = moved_ || operand.data != t.address();
    operand.data = t.address();
    return true;
  }

  const Exchange* exchange_;
  RuleName rule_;
  py::object refresh_;
  const py::str params_ = interned("params"), lr_ = interned("lr");
  optional<double> max_grad_norm_;
  dlpack::Device device_{};
  std::vector<Row> rows_;
  std::vector<Group> groups_;
  std::vector<Record> records_;
  std::deque<std::vector<int64_t>> layouts_;  // sizes, then strides, of each record
  std::vector<Entry> entries_;
  std::vector<PyObject*> states_of_;                    // borrowed, of this look
  std::vector<std::array<Place, kNoRole + 1>> places_;  // by role, the parameter last
  std::vector<Reference> gradients_;                    // held until the step is over
  bool moved_ = true;
};

}  // namespace fastdl::optim
