//! Metrics of the edge as a whole: who it is, its configuration, interfaces, tables and certificates.

use super::{metrics, truth};

metrics! {
    Gauge "sluice_build_info" ["edge" "version"]
        "Always 1; the labels say who it is": |it, to| to.put(&[&it.edge, &it.version], 1.0);
    Gauge "sluice_ready" []
        "1 once the data plane is attached and has the configuration": |it, to| to.put(&[], truth(it.ready));
    Gauge "sluice_draining" []
        "1 while the whole edge drains": |it, to| to.put(&[], truth(it.draining.is_some()));
    Gauge "sluice_uptime_seconds" []
        "Since the agent started": |it, to| to.count(&[], it.uptime_seconds);
    Gauge "sluice_start_time_seconds" []
        "When the agent started, in Unix time": |it, to| to.count(&[], it.started);
    Counter "sluice_config_generation_total" []
        "Configurations taken over since the start, the first included":
        |it, to| to.count(&[], it.config_generation);
    Gauge "sluice_config_refused" []
        "1 if the last change of the file was refused: the edge runs with the configuration before":
        |it, to| to.put(&[], truth(it.config_refused.is_some()));
    Gauge "sluice_certificates_refused" []
        "1 if the last change of a certificate, its key or ticket keys was refused: those before are in force":
        |it, to| to.put(&[], truth(it.certificates_refused.is_some()));
    Gauge "sluice_config_taken_over_seconds" []
        "When the configuration in force was taken over, in Unix time":
        |it, to| to.count(&[], it.config_taken);
    Gauge "sluice_interface_attached" ["interface"]
        "1 if the XDP program is attached there": |it, to| {
            it.interfaces.iter().for_each(|it| to.put(&[&it.name], truth(it.attached)));
        };
    Gauge "sluice_table_entries" ["table"]
        "Entries of a BPF map, as of the last walk through it": |it, to| {
            it.tables.iter().for_each(|it| to.count(&[&it.name], it.entries));
        };
    Gauge "sluice_table_capacity" ["table"]
        "Most entries of a BPF map": |it, to| {
            it.tables.iter().for_each(|it| to.count(&[&it.name], it.capacity));
        };
    Gauge "sluice_certificate_expiry_seconds" ["service" "certificate"]
        "When a certificate ends, in Unix time": |it, to| {
            for it in &it.certificates {
                to.put(&[&it.service, &it.certificate], it.not_after as f64);
            }
        };
}
